# SPDX-License-Identifier: Apache-2.0
"""Tool calls parsed from a stream agree with mlx-lm, which parses complete calls."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from inference_bridge.chat.markup import ChatFormat, detect_format
from inference_bridge.types import Tool

Read = Callable[..., Any]


@pytest.fixture(scope="module")
def parsers() -> Path:
    """The directory of mlx-lm's parsers. Each is loaded separately, because the package imports an engine."""
    spec = importlib.util.find_spec("mlx_lm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("mlx-lm is not installed")
    return Path(spec.submodule_search_locations[0]) / "tool_parsers"


def load(parsers: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"mlx_oracle_{name}", parsers / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def xml(**parameters: str) -> str:
    inside = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters.items())
    return f"\n<function=get_weather>\n{inside}</function>\n"


def glm(**parameters: str) -> str:
    return "get_weather" + "".join(
        f"\n<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>" for key, value in parameters.items()
    )


def minimax(**parameters: str) -> str:
    inside = "".join(f'<parameter name="{key}">{value}</parameter>\n' for key, value in parameters.items())
    return f'\n<invoke name="get_weather">\n{inside}</invoke>\n'


VALUES = [
    {"city": "Paris"},
    {"city": "Pa\nris", "days": "3"},
    {"city": "5", "days": "-3", "share": "0.5", "exact": "true"},
    {"city": '"quoted" \\ {x} <b> é😀', "tags": '["a", "b"]', "options": '{"deep": {"list": [1, null, true]}}'},
    {"city": "  spaces\n\nand lines\t"},
    {"city": "", "exact": "false"},
    {"days": "7", "unknown": "some text", "city": "x"},
]

HERMES = detect_format("<tool_call></tool_call>")
MISTRAL = detect_format("[TOOL_CALLS]")
GEMMA = detect_format("<|tool_call>")
LFM = detect_format("<|tool_call_start|>")
KIMI = detect_format("<|tool_calls_section_begin|>")

ATEM = detect_format("<atem:function_calls>")
FUNCTION_GEMMA = detect_format("<start_function_call>")

CASES: list[tuple[str, ChatFormat, str]] = [
    ("json_tools", HERMES, '\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n'),
    ("json_tools", HERMES, '{"name": "stop", "arguments": {"city": "}\\"{\\\\", "tags": [["]"], {}], "n": 1.5e-3}}'),
    ("json_tools", HERMES, '{"arguments": {"city": "\\u00e9\\ud83d\\ude00 é"}, "name": "get_weather"}'),
    *(("qwen3_coder", HERMES, xml(**values)) for values in VALUES),
    ("qwen3_coder", HERMES, xml(days="3.0", exact="True", options="{'a': None}", tags="('a',)", either="7 o'clock")),
    ("qwen3_coder", HERMES, "\n<function=stop>\n</function>\n"),
    *(("glm47", HERMES, glm(**values)) for values in VALUES if values["city"].strip() == values["city"]),
    ("glm47", HERMES, glm(unknown="3", other="['x']")),
    *(
        ("minimax_m2", detect_format("<minimax:tool_call>"), minimax(**values))
        for values in VALUES
        if values["city"].strip() == values["city"] and "unknown" not in values
    ),
    (
        "muse_spark",
        ATEM,
        '<atem:invoke name="stop"><atem:parameter name="a" string="true">some text</atem:parameter>'
        '<atem:parameter name="b" string="false">[1, 2]</atem:parameter></atem:invoke>',
    ),
    ("mistral", MISTRAL, '[{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "abcdefghi"}]'),
    ("mistral", MISTRAL, ' [{"name": "stop", "arguments": {}}, {"name": "stop", "arguments": "{\\"city\\": 1}"}]'),
    ("mistral", MISTRAL, 'get_weather[ARGS]{"city": "[ARGS]"}'),
    ("mistral", MISTRAL, 'get_weather [ARGS] {"city": "a"}stop[ARGS]{}'),
    ("gemma4", GEMMA, 'call:get_weather{city:<|"|>Paris<|"|>}'),
    ("gemma4", GEMMA, 'call:get_weather{city:<|"|>"a", {b: c} \\<|"|>,days:3,share:0.5,exact:true,either:null}'),
    ("gemma4", GEMMA, 'call:stop{tags:[<|"|>a<|"|>,<|"|>b,]<|"|>],options:{deep:{list:[1,2,{x:<|"|>}<|"|>}]}}}'),
    ("gemma4", GEMMA, "call:stop{}"),
    ("gemma4", GEMMA, 'call:stop{}call:get_weather{city:<|"|><|"|>}'),
    ("function_gemma", FUNCTION_GEMMA, 'call:get_weather{city:<escape>Par, is: "<escape>,days:3}'),
    ("function_gemma", FUNCTION_GEMMA, "call:get_weather{city:Paris,exact:false}"),
    ("pythonic", LFM, '[get_weather(city="Paris")]'),
    ("pythonic", LFM, "[get_weather(city='it\\'s', days=3, share=-0.5, exact=True), stop()]"),
    ("pythonic", LFM, '[get_weather(city="x", options={"a": [true, null, {"b": "c)]"}]}, tags=["a"])]'),
    (
        "kimi_k2",
        KIMI,
        "<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "a"}<|tool_call_end|>'
        "<|tool_call_begin|>functions.stop:1<|tool_call_argument_begin|>{}<|tool_call_end|>",
    ),
]


@pytest.mark.parametrize(("parser", "format", "text"), CASES)
def test_agrees_with_mlx_lm(
    read: Read, tools: tuple[Tool, ...], parsers: Path, parser: str, format: ChatFormat, text: str
) -> None:
    oracle = load(parsers, parser)
    found = oracle.parse_tool_call(text, [tool.to_dict() for tool in tools])
    calls = found if isinstance(found, list) else [found]
    expected = [(call["name"], json.loads(json.dumps(call["arguments"]))) for call in calls]
    for sizes in ([1], [4], [10_000]):
        answer = read(format, f"{oracle.tool_call_start}{text}{oracle.tool_call_end}", sizes)
        assert answer.calls == expected
        assert (answer.text, answer.reasoning) == ("", "")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("city", "null", "null"),  # a text is a text: here mlx-lm says None
        ("days", "null", None),
        ("days", "many", "many"),
        ("days", "3.5", "3.5"),
        ("share", "1e999", "1e999"),  # not a double, so it cannot be written as JSON
        ("options", '{"a": 1e999}', '{"a": 1e999}'),
        ("share", "3", 3),
        ("exact", "1", "1"),
        ("either", "5", 5),
        ("either", "five", "five"),
        ("options", "NaN", "NaN"),
        ("linked", "[1, 2]", [1, 2]),
        ("linked", "5", "5"),
        ("options", "[1]", "[1]"),
        ("unknown", "5", "5"),
        ("unknown", '{"a": 1}', {"a": 1}),
        ("unknown", "9" * 5000, "9" * 5000),
    ],
)
def test_text_parameters_are_converted_to_the_types_of_the_schema(
    read: Read, key: str, value: str, expected: Any
) -> None:
    answer = read(HERMES, f"<tool_call>{xml(**{key: value})}</tool_call>")
    assert answer.calls == [("get_weather", {key: expected})]


def test_the_values_of_an_enum_are_its_types(read: Read) -> None:
    levels = {"level": {"enum": [1, 2, None]}, "word": {"enum": ["1", "2"]}}
    tool = Tool("get_weather", "", {"type": "object", "properties": levels})
    answer = read(HERMES, f"<tool_call>{xml(level='2', word='2')}</tool_call>", tools=[tool])
    assert answer.calls == [("get_weather", {"level": 2, "word": "2"})]


def test_a_parameter_without_a_type_is_json_in_notations_that_define_it(read: Read) -> None:
    answer = read(HERMES, f"<tool_call>{glm(unknown='5', other='five')}</tool_call>")
    assert answer.calls == [("get_weather", {"unknown": 5, "other": "five"})]


def test_an_infinite_number_without_quotes_is_a_text(read: Read) -> None:
    assert read(GEMMA, "<|tool_call>call:stop{a:1e999}<tool_call|>").calls == [("stop", {"a": "1e999"})]


def test_values_nested_without_end_are_refused(read: Read) -> None:
    answer = read(GEMMA, "<|tool_call>call:stop{a:" + "[" * 2000)
    assert answer.calls == []
    assert answer.arguments.startswith('{"a": [[[')
    read(HERMES, '<tool_call>{"x": ' + "[" * 5000 + "]" * 5000)
    read(HERMES, f"<tool_call>{xml(options='[' * 5000)}")
    read(LFM, "<|tool_call_start|>[f(a=" + "-" * 5000 + "1)]<|tool_call_end|>")


K2 = detect_format("<ifm|tool_calls>")
DOTS = detect_format("<dots_function_call>")
GEMMA_4 = detect_format("<|tool_call>")


@pytest.mark.parametrize(
    ("format", "text", "arguments"),
    [
        # The type of a value may stand before it.
        (
            K2,
            "<ifm|tool_calls><ifm|tool_call>get_weather<ifm|arg_key>days</ifm|arg_key>\n"
            "<ifm|arg_type>integer</ifm|arg_type>\n<ifm|arg_value>3</ifm|arg_value></ifm|tool_call></ifm|tool_calls>",
            [{"days": 3}],
        ),
        (
            K2,
            '<ifm|tool_calls><ifm|tool_call>{"name": "get_weather", "arguments": {"days": 3}}</ifm|tool_call>\n'
            "<ifm|tool_call>get_weather<ifm|arg_key>days</ifm|arg_key><ifm|arg_value>4</ifm|arg_value></ifm|tool_call>"
            "</ifm|tool_calls>",
            [{"days": 3}, {"days": 4}],
        ),
        (
            DOTS,
            '<dots_function_call>{"name": "get_weather", "arguments": {"days": 3}}</dots_function_call>',
            [{"days": 3}],
        ),
        # Gemma's template writes keys as they are.
        (
            GEMMA_4,
            "<|tool_call>call:get_weather{options:{a b:1}}<tool_call|><|tool_call>call:get_weather{options:{it's/x:3}}"
            "<tool_call|>",
            [{"options": {"a b": 1}}, {"options": {"it's/x": 3}}],
        ),
        (
            GEMMA_4,
            "<|tool_call>call:get_weather{options:{a:1,text/html:-2.5e3,b c:true,d/e:null,f:4}}<tool_call|>",
            [{"options": {"a": 1, "text/html": -2500.0, "b c": True, "d/e": None, "f": 4}}],
        ),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_other_spellings_of_a_notation(
    read: Read, format: ChatFormat, text: str, arguments: list[dict[str, Any]], size: int
) -> None:
    answer = read(format, text, [size])
    assert answer.calls == [("get_weather", each) for each in arguments]
    assert answer.text == ""
