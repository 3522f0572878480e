# SPDX-License-Identifier: Apache-2.0
"""Outputs parsed by the response template of a model's tokenizer_config.json."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from inference_bridge import GenerationError, Message, Tool
from inference_bridge.chat.formats import response_template
from inference_bridge.chat.formats.response_template import (
    DELIMITER_LIMIT,
    ResponseTemplateError,
    load_response_template,
)
from inference_bridge.chat.markup import ChatFormat, detect_format
from inference_bridge.chat.templates.template import ChatTemplate
from inference_bridge.types import join_tool_calls
from tests.parts.chat_forms import SAVE, TOOLS
from tests.parts.work import work_of

pytest.importorskip("regex")

Read = Callable[..., Any]

FUNCTION = {"type": "function", "function": "{content}"}
NAMED = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}

QWEN = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": FUNCTION,
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>)"},
    },
}
CHANNELS = {
    "start_anchor": "<|start|>assistant",
    "fields": {
        "thinking": {"open": "<|channel|>analysis<|message|>", "close": "<|end|>"},
        "content": {"open": "<|channel|>final<|message|>", "close": "<|end|>"},
        "tool_calls": {
            "open_pattern": r"<\|channel\|>commentary to=functions\.(?P<name>\w+).*?<\|message\|>",
            "close": "<|call|>",
            "repeats": True,
            "content": "json",
            "transform": NAMED,
        },
    },
}
LISTED = {
    "start_anchor": "<|CHATBOT|>",
    "fields": {
        "content": {"open": "<|START_RESPONSE|>", "close": "<|END_RESPONSE|>"},
        "thinking": {"open": "<|START_THINKING|>", "close": "<|END_THINKING|>"},
        "tool_calls": {
            "open": "<|START_ACTION|>",
            "close": "<|END_ACTION|>",
            "content": "json",
            "transform_each": True,
            "transform": {"function": {"name": "{tool_name}", "arguments": "{parameters}"}},
        },
    },
}
TAGS = {
    "start_anchor": ["<|im_start|>assistant\n", "<|resume|>"],
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
            "close_pattern": r"</function>\s*</tool_call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>"},
            "transform": NAMED,
        },
        "content": {},
    },
}
GEMMA = {
    "start_anchor": "<|turn>model\n",
    "fields": {
        "reasoning_content": {"open": "<|channel>thought\n", "close": "<channel|>"},
        "tool_calls": {
            "open_pattern": r"<\|tool_call>call:(?P<name>\w+)",
            "close": "<tool_call|>",
            "repeats": True,
            "content": "json",
            "content_args": {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
            "transform": NAMED,
        },
        "content": {"close": ["<turn|>", "<eos>"]},
    },
}
PYTHON = {
    "start_anchor": "assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<|calls|>",
            "close": "<|/calls|>",
            "content": "python-call-list",
            "transform_each": True,
            "transform": {"function": {"name": "{name}", "arguments": "{arguments}"}},
        },
        "content": {},
    },
}
LINES = {
    "start_anchor": "assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"@(?P<name>\w+)\n",
            "close": "@end",
            "repeats": True,
            "content": "kv-lines",
            "transform": NAMED,
        },
        "content": {},
    },
}

# A template, an output, and the expected text, reasoning and calls.
OUTPUTS: dict[str, tuple[dict[str, Any], str, str, str, list[Any]]] = {
    "plain": (QWEN, "Hello", "Hello", "", []),
    "thought": (QWEN, "<think>\nHm, <b>.\n</think>\n\nHello", "Hello", "Hm, <b>.", []),
    "json": (
        QWEN,
        '<think>Hm</think>\n<tool_call>\n{"name": "save", "arguments": {"path": "a", "count": 3}}\n</tool_call>\n'
        '<tool_call>{"name": "clock", "arguments": {}}</tool_call>',
        "",
        "Hm",
        [("save", {"path": "a", "count": 3}), ("clock", {})],
    ),
    "text beside a call": (
        QWEN,
        'Well.\n\n<tool_call>{"name": "clock", "arguments": {}}</tool_call>',
        "Well.",
        "",
        ["clock"],
    ),
    "a call in a thought": (
        QWEN,
        '<think>Perhaps <tool_call>{"name": "clock", "arguments": {}}</tool_call>.</think>No.',
        "No.",
        'Perhaps <tool_call>{"name": "clock", "arguments": {}}</tool_call>.',
        [],
    ),
    "channels": (
        CHANNELS,
        "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>Hello",
        "Hello",
        "Hm",
        [],
    ),
    "channel of a call": (
        CHANNELS,
        '<|channel|>commentary to=functions.save <|constrain|>json<|message|>{"path": "a\\n"}<|call|>',
        "",
        "",
        [("save", {"path": "a\n"})],
    ),
    "listed": (
        LISTED,
        '<|START_THINKING|>Hm<|END_THINKING|><|START_ACTION|>[{"tool_call_id": "0", "tool_name": "save", '
        '"parameters": {"path": "a"}}, {"tool_name": "clock", "parameters": {}}]<|END_ACTION|>',
        "",
        "Hm",
        [("save", {"path": "a"}), ("clock", {})],
    ),
    "tags": (
        TAGS,
        "<tool_call>\n<function=save>\n<parameter=path>\na\n\n</parameter>\n<parameter=count>\n5\n</parameter>\n"
        "</function>\n</tool_call>",
        "",
        "",
        [("save", {"path": "a\n", "count": 5})],
    ),
    "marked strings": (
        GEMMA,
        '<|channel>thought\nHm\n<channel|><|tool_call>call:save{path:<|"|>a, "b": {c}<|"|>,count:3}<tool_call|>',
        "",
        "Hm",
        [("save", {"path": 'a, "b": {c}', "count": 3})],
    ),
    "python": (
        PYTHON,
        "Well.<|calls|>[save(path='a', rows=['b', 'c']), clock()]<|/calls|>",
        "Well.",
        "",
        [("save", {"path": "a", "rows": ["b", "c"]}), ("clock", {})],
    ),
    "lines": (LINES, "@save\npath: a b\ncount: 3\n@end", "", "", [("save", {"path": "a b", "count": 3})]),
}


def format_by(template: Mapping[str, Any], beginning: str = "") -> ChatFormat:
    return ChatFormat(response=load_response_template(template), beginning=beginning)


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_is_read_by_the_template_however_it_is_cut(read: Read, name: str) -> None:
    template, output, text, reasoning, calls = OUTPUTS[name]
    calls = [(call, {}) if isinstance(call, str) else call for call in calls]
    for sizes in ([1], [2, 5, 3], [4], [10_000]):
        answer = read(format_by(template), output, sizes, tools=TOOLS)
        assert (answer.text.strip(), answer.reasoning.strip(), answer.calls) == (text, reasoning, calls)
        assert len(answer.tokens) <= len(output.encode()) + 1


@pytest.mark.parametrize("name", OUTPUTS)
def test_transformers_reads_the_same(name: str) -> None:
    parsing = pytest.importorskip("transformers.utils.chat_parsing")
    template, output, text, reasoning, calls = OUTPUTS[name]
    tools = [tool.to_dict() for tool in TOOLS]
    message = parsing.parse_response(output, dict(template), prefix="", tools=tools)
    found = message.get("tool_calls", [])
    assert [call["function"]["name"] for call in found] == [
        call if isinstance(call, str) else call[0] for call in calls
    ]
    assert message.get("content", "") == text
    assert message.get("reasoning_content", message.get("thinking", "")) == reasoning


def test_the_beginning_of_the_output_in_the_prompt_is_parsed(read: Read) -> None:
    response = load_response_template(TAGS)
    prompt = "<|im_start|>assistant\n<think>old</think><|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert response.beginning(prompt) == "<think>\n"
    assert response.beginning("x <|resume|>") == ""
    assert response.beginning("no anchor") == ""
    for sizes in ([1], [100]):
        answer = read(format_by(TAGS, "<think>\n"), "Hm.</think>Hello", sizes, tools=TOOLS)
        assert (answer.text, answer.reasoning) == ("Hello", "Hm.")
        answer = read(format_by(TAGS, "<think>\n\n</think>\n"), "\nHello", sizes, tools=TOOLS)
        assert (answer.text, answer.reasoning) == ("Hello", "")
        # The beginning of a tag is in the prompt, and its end in the output.
        answer = read(format_by(QWEN, "<thi"), "nk>Hm.</think>Hello", sizes, tools=TOOLS)
        assert (answer.text, answer.reasoning) == ("Hello", "Hm.")


@pytest.mark.parametrize(
    "output",
    [
        "<tool_call>save it</tool_call>",
        '<tool_call>{"name": 5}</tool_call>',
        '<tool_call>{"name": "save", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "save", "argume',
        "<tool_call>" + "[" * 5000 + "</tool_call>",
    ],
)
def test_a_call_that_cannot_be_read_is_text(read: Read, output: str) -> None:
    for sizes in ([1], [7], [10_000]):
        answer = read(format_by(QWEN), f"Well. {output}", sizes, tools=TOOLS)
        assert (answer.text, answer.calls) == (f"Well. {output}", [])


def test_a_part_of_a_call_that_cannot_be_read_is_not_lost(read: Read) -> None:
    broken = "<tool_call><function=save><parameter=path>a<parameter=body>b</body></function></tool_call>"
    answer = read(format_by(TAGS), broken, [3], tools=TOOLS)
    assert (answer.text, answer.calls) == (broken, [])


def test_calls_are_text_if_the_request_has_no_tools(read: Read) -> None:
    output = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    assert read(format_by(QWEN), output, [3], tools=()).text == output


def test_an_output_that_has_none_of_the_regions_is_text(read: Read) -> None:
    for sizes in ([1], [100]):
        assert read(format_by(LISTED), "Hello there.", sizes, tools=TOOLS).text == "Hello there."
        between = "<|START_THINKING|>Hm<|END_THINKING|> between <|START_RESPONSE|>Hello<|END_RESPONSE|>"
        assert read(format_by(LISTED), between, sizes, tools=TOOLS).text == "Hello"


def test_a_delimiter_has_a_longest_length(read: Read) -> None:
    template = {"start_anchor": "a", "fields": {"thinking": {"open_pattern": "<t.*?>", "close": "</t>"}, "content": {}}}
    within, beyond = (f"<t{'x' * size}>Hm</t>Hello" for size in (DELIMITER_LIMIT - 10, DELIMITER_LIMIT + 10))
    for sizes in ([1], [50], [10_000]):
        assert read(format_by(template), within, sizes).text == "Hello"
        assert read(format_by(template), beyond, sizes).text == beyond


def test_stop_strings_and_other_tokens_are_kept(read: Read) -> None:
    answer = read(format_by(QWEN), "<think>a Done b</think>One Done two", [1], tools=TOOLS, stops=["Done"])
    assert (answer.text, answer.reasoning) == ("One ", "a Done b")


# ---------------------------------------------------------------- refused templates, and long searches


def field(**given: Any) -> dict[str, Any]:
    return {"start_anchor": "a", "fields": {"content": given}}


@pytest.mark.parametrize(
    "template",
    [
        "text",
        {},
        {"start_anchor": "a"},
        {"start_anchor": "a", "fields": {}},
        {"start_anchor": "a", "fields": {str(n): {"open": "a"} for n in range(40)}},
        {"fields": {"content": {}}},
        {"version": 2, **field()},
        {"x": 1, **field()},
        field(x=1),
        field(open=""),
        field(open=[]),
        field(open=5),
        field(open=[["a"]]),
        field(open=[{}]),
        {"start_anchor": [["a"]], "fields": {"content": {}}},
        field(open="x" * (DELIMITER_LIMIT + 1)),
        field(open="a", open_pattern="b"),
        field(content="eval"),
        {"start_anchor": "a", "fields": {"content": {}, "thinking": {}}},
        {"start_anchor": "a", "fields": {"tool_calls": {"content": "json"}}},
        {"start_anchor": "a", "fields": {"tool_calls": {"open": "a"}}},
        {"start_anchor": "a", "fields": {"tool_calls": {"open": "a", "content": "json", "transform": "x {content}"}}},
        {"start_anchor": "a", "fields": {"tool_calls": {"open": "a", "content": "xml-inline"}}},
        {
            "start_anchor": "a",
            "fields": {"tool_calls": {"open": "a", "content": "kv-lines", "content_args": {"kv_sep": ""}}},
        },
    ],
)
def test_a_template_that_is_not_valid_is_refused(template: Any) -> None:
    with pytest.raises(ResponseTemplateError):
        load_response_template(template)


@pytest.mark.parametrize(
    "pattern",
    [
        *("(", "^a", r"\Aa", r"a\b", "(?<=a)b", "(?<!a)b", r"(a)\1", "(?R)", "(?P>a)", "(?&a)", "a{1,5000}", "(?i)a"),
        *("(?:abc){e<=2}", "(?>a)", "(?|a|b)", "(?#a)", "(?(1)a|b)", r"\g<1>", r"\L<a>", r"\p{L}", "a" * 501, 5),
        "(?:" * 30 + "a" + ")" * 30,
    ],
)
def test_expressions_that_could_look_back_or_run_away_are_refused(pattern: Any) -> None:
    with pytest.raises(ResponseTemplateError):
        load_response_template(field(open_pattern=pattern))


@pytest.mark.parametrize(
    "pattern",
    [r"\s*<\|a\|>", r"(?:a|b)(?P<name>[^>\n]+)>", "[]^{]a", r"a(?=b)", r"a(?!b)", "a{1,20}?", r"\{[\w.-]+x"],
)
def test_ordinary_expressions_are_taken(pattern: str) -> None:
    load_response_template(
        {"start_anchor_pattern": pattern, "fields": {"content": {"close_pattern": pattern.replace("?P<name>", "")}}}
    )


@pytest.mark.parametrize(
    "pattern", ["(?:a*)*(?:a*)*(?:a*)*(?:a*)*c", "(?:a|aa|aaa)*(?:a|aa)*(?:a|aaa)*x", "(?:(?:a{1,99}){1,99}){1,99}b"]
)
def test_a_search_that_takes_too_long_ends_the_answer_with_an_error(read: Read, pattern: str) -> None:
    with pytest.raises(GenerationError, match="response_template"):
        read(format_by(field(close_pattern=pattern)), "a" * 3000 + "d" * 3000, [10_000])


def test_the_time_of_a_long_call_is_proportional_to_its_length() -> None:
    """The text that is searched at each piece is counted."""
    from inference_bridge.chat.markup import chat_output
    from inference_bridge.chat.reader import Reader

    searched = []
    for count in (1000, 2000):
        call = json.dumps({"name": "save", "arguments": {"path": "word " * count}})
        output = chat_output(format_by(QWEN), tools=TOOLS)
        parser = output._parser
        assert isinstance(parser, Reader)
        waiting = 0
        text = f"<tool_call>{call}</tool_call>"
        for at in range(0, len(text), 4):
            output.push(text[at : at + 4].encode())
            waiting += len(parser.text)
        searched.append(waiting)
    assert searched[1] < 3 * searched[0]


# ---------------------------------------------------------------- with a chat template

_CALLS = (
    "{%- for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}CALL{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_JSON_CALL = "<call>{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}</call>"
_TAGGED = (
    "<tool_call>\n<function={{ c.function.name }}>\n{% for k, v in c.function.arguments.items() %}<parameter={{ k }}>\n"
    "{{ v }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
)


def own(tag: str) -> dict[str, Any]:
    calls = {"open": f"<{tag}>", "close": f"</{tag}>", "repeats": True, "content": "json", "transform": FUNCTION}
    return {"start_anchor": "<|im_start|>assistant\n", "fields": {"tool_calls": calls, "content": {}}}


def test_a_notation_that_only_the_response_template_knows_is_read(read: Read) -> None:
    pytest.importorskip("jinja2")
    source = _CALLS.replace("CALL", _JSON_CALL)
    with_it = ChatTemplate(source, response_template=own("call"))
    without = ChatTemplate(source)
    assert (with_it.supports_tools, without.supports_tools) == (True, False)
    prompt = with_it.render([Message("user", "Q")], tools=[SAVE])
    output = '<call>{"name": "save", "arguments": {"path": "a"}}</call>'
    assert read(prompt.format, output, [3], tools=TOOLS).calls == [("save", {"path": "a"})]
    assert "<tool_call>" not in prompt.text


def test_a_response_template_that_loses_line_breaks_is_not_used(read: Read) -> None:
    pytest.importorskip("jinja2")
    source = _CALLS.replace("CALL", _TAGGED)
    strips = json.loads(
        json.dumps(TAGS).replace(r"\\n?(?P<value>", r"\\s*(?P<value>").replace(r"\\n?</par", r"\\s*</par")
    )
    assert strips != TAGS
    output = "<tool_call>\n<function=save>\n<parameter=path>\na\n\n</parameter>\n</function>\n</tool_call>"
    for template, used in ((TAGS, True), (strips, False)):
        made = ChatTemplate(source, response_template=template)
        prompt = made.render([Message("user", "Q")], tools=[SAVE])
        assert (prompt.format.response is not None) == used
        assert read(prompt.format, output, [3], tools=TOOLS).calls == [("save", {"path": "a\n"})]


def test_a_response_template_that_is_not_valid_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("jinja2")
    made = ChatTemplate(_CALLS.replace("CALL", _TAGGED), response_template=field(open_pattern="(?R)"))
    assert made.format.response is None
    assert any("response_template" in record.getMessage() for record in caplog.records)


def test_tags_of_reasoning_are_learnt_from_the_response_template() -> None:
    pytest.importorskip("jinja2")
    template = own("call")
    template["fields"]["thinking"] = {"open": "<my thought>", "close": "</my thought>"}
    made = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", response_template=template)
    assert made.reasons
    assert detect_format("{{ messages }}").thinking is None


def test_the_generic_prompt_is_read_by_the_built_in_parsers(read: Read) -> None:
    pytest.importorskip("jinja2")
    made = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", response_template=own("call"))
    prompt = made.render([Message("user", "Q")], tools=[Tool("clock")])
    output = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    assert read(prompt.format, output, [3], tools=TOOLS).calls == [("clock", {})]


def test_pieces_of_calls_are_joined_as_in_other_formats(read: Read) -> None:
    answer = read(format_by(QWEN), OUTPUTS["json"][1], [3], tools=TOOLS)
    calls = join_tool_calls(token.tool_call for token in answer.tokens if token.tool_call is not None)
    assert len({call.id for call in calls}) == 2


def test_a_long_output_that_arrives_at_once_is_read_in_pieces(read: Read) -> None:
    """A search through all of it for each call would run into the limits of time."""
    call = '<tool_call>{"name": "save", "arguments": {"path": "a"}}</tool_call>'
    answer = read(format_by(QWEN), call * 1000, [10**9], tools=TOOLS)
    assert (answer.text, answer.calls) == ("", [("save", {"path": "a"})] * 1000)


def test_time_for_which_a_search_waits_for_a_core_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiting:
        def search(self, *_: object, **__: object) -> None:
            time.sleep(0.2)

    monkeypatch.setattr(response_template, "_OUTPUT_SECONDS", 0.1)
    assert response_template.Clock().search(Waiting(), "", 0) is None


@pytest.mark.parametrize(("template", "unit"), [(LISTED, "<|START"), (CHANNELS, "<|channel|>")])
def test_text_outside_every_field_is_kept_in_linear_work(template: Mapping[str, Any], unit: str) -> None:
    format = format_by(template)
    less, more = (work_of(format, unit * count, 4).calls for count in (300, 1200))
    assert more < 5 * less
