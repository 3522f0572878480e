# SPDX-License-Identifier: Apache-2.0
"""Outputs as the documentation of model families and servers shows them, each cut in two at every character."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from inference_bridge.chat.markup import detect_format
from inference_bridge.types import Tool

from .conftest import TOOLS as COMMON

Read = Callable[..., Any]

TOOLS = (COMMON[0], Tool("clock", "The time"))
SF = ("get_weather", {"city": "SF"})
CALL = '{"name": "get_weather", "arguments": {"city": "SF"}}'


class Case(NamedTuple):
    """`marks`: what the chat template names. `begun`: the prompt ends inside reasoning."""

    marks: str
    output: str
    text: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = (SF,)
    begun: bool = False


def _step(name: str, parameters: str) -> str:
    return (
        f'<\uff5ctool_call_begin\uff5c>function<\uff5ctool_sep\uff5c><steptml:invoke name="{name}">{parameters}'
        "</steptml:invoke><\uff5ctool_call_end\uff5c>"
    )


def _plamo(name: str, arguments: str) -> str:
    tags = {tag: f"<|plamo:{tag}:plamo|>" for tag in ("begin_tool_name", "end_tool_name", "begin_tool_request")}
    return (
        f"{tags['begin_tool_request']}{tags['begin_tool_name']}{name}{tags['end_tool_name']}"
        f"<|plamo:begin_tool_arguments:plamo|><|plamo:constrain|>json<|plamo:msg|>{arguments}"
        "<|plamo:end_tool_arguments:plamo|><|plamo:end_tool_request:plamo|>"
    )


def _dsml(calls: str, space: str = "") -> str:
    mark = f"\uff5cDSML\uff5c{space}"
    return (
        f'<{mark}{calls}>\n<{mark}invoke name="get_weather">\n'
        f'<{mark}parameter name="city" string="true">SF</{mark}parameter>\n'
        f'<{mark}parameter name="days" string="false">5</{mark}parameter>\n</{mark}invoke>\n</{mark}{calls}>'
    )


_STEP = "<\uff5ctool_calls_begin\uff5c>", "<\uff5ctool_calls_end\uff5c>"
_STEP_CITY = '<steptml:parameter name="city">SF</steptml:parameter>'
_PLAMO = "<|plamo:begin_tool_requests:plamo|>", "<|plamo:end_tool_requests:plamo|>"
_PLAMO_MARKS = "<|plamo:begin_think:plamo|><|plamo:begin_tool_requests:plamo|>"
_INKLING = "<|message_model|><|content_text|>"
_K2 = "<ifm|tool_calls><ifm|think><ifm|think_fast><ifm|think_faster>"
_HY4 = "<tool_calls:6124c78e></think:6124c78e>"
_DAYS = ("get_weather", {"city": "SF", "days": 5})

CASES = {
    "step 3": Case(
        f"</think>{_STEP[0]}", f"Hm</think>{_STEP[0]}{_step('get_weather', _STEP_CITY)}{_STEP[1]}", "", "Hm", begun=True
    ),
    "step 3, two calls": Case(
        _STEP[0],
        f"I look. {_STEP[0]}\n{_step('get_weather', _STEP_CITY)}\n{_step('clock', '')}\n{_STEP[1]} Well.",
        "I look.Well.",  # the space beside a call belongs to its markup
        calls=(SF, ("clock", {})),
    ),
    "step 3, values as they stand": Case(
        _STEP[0],
        _STEP[0]
        + _step(
            "get_weather",
            '<steptml:parameter name="city">\n a <b>\n</steptml:parameter>'
            '<steptml:parameter name="days">3</steptml:parameter>'
            '<steptml:parameter name="tags">["x"]</steptml:parameter>',
        )
        + _STEP[1],
        calls=(("get_weather", {"city": "\n a <b>\n", "days": 3, "tags": ["x"]}),),
    ),
    "step 3.5": Case(
        "</think><tool_call><function=",
        "Hm\n</think>\n<tool_call>\n<function=get_weather>\n<parameter=city>\nSF\n</parameter>\n</function>\n</tool_call>",
        reasoning="Hm",
        begun=True,
    ),
    "plamo 3": Case(
        _PLAMO_MARKS,
        "<|plamo:begin_think:plamo|>Hm<|plamo:end_think:plamo|>"
        + _PLAMO[0]
        + _plamo("get_weather", '{"city": "SF"}')
        + _plamo("clock", "")
        + _PLAMO[1]
        + "<|plamo:tag|>",
        reasoning="Hm",
        calls=(SF, ("clock", {})),
    ),
    "plamo 3, an answer": Case(
        _PLAMO_MARKS,
        "Hm<|plamo:end_think:plamo|>Hello<|plamo:tag|>",
        "Hello",
        "Hm",
        (),
        begun=True,
    ),
    "inkling": Case(
        _INKLING,
        "<|content_thinking|>Hm<|end_message|><|message_model|><|content_text|>Hello<|end_message|>"
        '<|message_model|>get_weather<|content_invoke_tool_json|>{"args":{"city":"SF"},"name":"get_weather"}<|end_message|>'
        "<|content_model_end_sampling|>",
        "Hello",
        "Hm",
    ),
    "inkling, text behind calls": Case(
        _INKLING,
        '<|content_invoke_tool_json|>{"name":"get_weather","args":{"city":"SF"}}<|end_message|>'
        '<|message_model|><|content_invoke_tool_json|>{"name":"clock","args":{}}<|end_message|>'
        "<|message_model|><|content_text|>Done.<|end_message|><|content_model_end_sampling|>",
        "Done.",
        calls=(SF, ("clock", {})),
    ),
    "inkling, no header": Case(_INKLING, "Hello there.<|end_message|>", "Hello there.", calls=()),
    "inkling, reasoning that does not end": Case(
        _INKLING,
        '<|content_thinking|>Hm<|content_invoke_tool_json|>{"name":"get_weather","args":{"city":"SF"}}<|end_message|>',
        reasoning="Hm",
    ),
    "granite 3.0": Case("<|tool_call|>", f"<|tool_call|> [{CALL}]"),
    "granite 3.1": Case("<tool_call>", f"Sure. <tool_call> [{CALL}, {CALL}]", "Sure.", calls=(SF, SF)),
    "granite, contracted words": Case(
        "Here is my thought process: Here is my response:",
        "Here's my thought process: Hm. Here's my response: Hello",
        "Hello",
        "Hm.",
        (),
    ),
    "deepseek 4": Case("\uff5cDSML\uff5c", _dsml("tool_calls"), calls=(_DAYS,)),
    "deepseek 4, variants of its tag": Case(
        "\uff5cDSML\uff5c", _dsml("toolcalls") + "\n" + _dsml("tool"), calls=(_DAYS, _DAYS)
    ),
    "deepseek 4.1": Case("\uff5cDSML\uff5c", _dsml("calls", " "), calls=(_DAYS,)),
    "hy 4": Case(
        _HY4,
        "<think:6124c78e>Hm</think:6124c78e><tool_calls:6124c78e>\n<tool_call:6124c78e>get_weather\n"
        "<arg_key:6124c78e>city</arg_key:6124c78e>\n<arg_value:6124c78e>SF</arg_value:6124c78e>\n"
        "</tool_call:6124c78e>\n</tool_calls:6124c78e>",
        reasoning="Hm",
    ),
    **{
        f"k2 horizon, {tag}": Case(_K2, f"<ifm|{tag}>Hm <b></ifm|{tag}>\nHello", "Hello", "Hm <b>", ())
        for tag in ("think", "think_fast", "think_faster")
    },
    "k2 horizon, types": Case(
        _K2,
        "<ifm|tool_calls>\n<ifm|tool_call>get_weather\n<ifm|arg_key>city</ifm|arg_key>"
        "<ifm|arg_type>string</ifm|arg_type><ifm|arg_value>SF</ifm|arg_value></ifm|tool_call>\n</ifm|tool_calls>",
    ),
    "lfm2, json": Case("<|tool_list_start|>", f"<|tool_call_start|>[{CALL}]<|tool_call_end|>"),
    "gemma 4, without its word": Case("<|tool_call>", '<|tool_call>:get_weather{city:<|"|>SF<|"|>}<tool_call|>'),
    "ling 3, reasoning that does not end": Case(
        "<tool_call><arg_key></think>", "Hm<tool_call>clock</tool_call>", "", "Hm", (("clock", {}),), begun=True
    ),
    "ernie 4.5": Case(
        "<tool_call></think></response>",
        "Hm\n</think>\n\n<response>\nHello\n</response>\n",
        "Hello",
        "Hm",
        (),
        begun=True,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_documented_output_is_read_wherever_it_is_cut(read: Read, name: str) -> None:
    case = CASES[name]
    format = detect_format(case.marks)
    size = len(case.output.encode())
    for sizes in ([1], [size], *([at, size] for at in range(1, size))):
        answer = read(format, case.output, sizes, tools=TOOLS, in_reasoning=case.begun)
        assert (answer.text.strip(), answer.reasoning.strip(), answer.calls) == (
            case.text,
            case.reasoning,
            list(case.calls),
        )


@pytest.mark.parametrize(
    ("marks", "output"),
    [
        (_STEP[0], f"{_STEP[0]}<\uff5ctool_call_begin\uff5c>function<\uff5ctool_sep\uff5c>clock"),
        (_PLAMO_MARKS, _PLAMO[0] + _plamo("get weather", "{}")),
        (_HY4, "<tool_calls:6124c78e>none</tool_calls:6124c78e>"),
        ("\uff5cDSML\uff5c", "<\uff5cDSML\uff5c calls>none"),
    ],
)
def test_what_is_not_a_call_stays_text(read: Read, marks: str, output: str) -> None:
    for sizes in ([1], [10_000]):
        answer = read(detect_format(marks), output, sizes, tools=TOOLS)
        assert (answer.text, answer.calls) == (output, [])


@pytest.mark.parametrize("payload", ['{"name":"clock"', '{"title":"clock"}', "clock()", '{"name":"clock","args":{"a":'])
def test_a_broken_call_of_inkling_is_text(read: Read, payload: str) -> None:
    for sizes in ([1], [10_000]):
        answer = read(detect_format(_INKLING), f"<|content_invoke_tool_json|>{payload}", sizes, tools=TOOLS)
        assert (answer.text, answer.calls) == (payload, [])


def test_the_pair_of_tags_that_a_prompt_begins_comes_first() -> None:
    thinking = detect_format(_K2).thinking
    assert thinking is not None
    fast = thinking.begun_in("<|assistant|><ifm|think_fast>")
    assert (fast.opens, fast.closes) == ("<ifm|think_fast>", "</ifm|think_fast>")
    assert set(fast.pairs) == set(thinking.pairs)
    assert thinking.begun_in("<|assistant|>") == thinking
