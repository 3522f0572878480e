# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_bridge.chat.assembler import TextAssembler
from inference_bridge.chat.markup import GENERIC_OPENERS, THINKING, ChatFormat, Thinking, chat_output, detect_format
from inference_bridge.types import Token, Tool, ToolCallDelta

Read = Callable[..., Any]

steady = settings(
    derandomize=True, max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

QWEN = ChatFormat(THINKING[0], ("<tool_call>", "<function="))
MISTRAL = detect_format("[TOOL_CALLS] [THINK] [/THINK]")
GEMMA = detect_format("<|tool_call> <|channel>thought <channel|>")
LLAMA = detect_format("<|start_header_id|> ipython")
HARMONY = detect_format("<|channel|> <|message|>")
GENERIC = detect_format("{{ messages }}")
PLAIN = ChatFormat()

WEATHER = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
PARIS = ("get_weather", {"city": "Paris"})


# ---------------------------------------------------------------- reasoning


@pytest.mark.parametrize("tags", THINKING, ids=lambda tags: tags.opens)
def test_think_tags_are_not_part_of_any_token(read: Read, tags: Thinking) -> None:
    answer = read(ChatFormat(tags), f"{tags.opens}\nWell, 1 < 2.\n{tags.closes}\n\nYes.")
    assert (answer.reasoning, answer.text) == ("Well, 1 < 2.", "Yes.")


@pytest.mark.parametrize(
    ("format", "text", "reasoning", "visible"),
    [
        (QWEN, "<think>\n\n</think>\n\nYes.", "", "Yes."),
        (QWEN, "  Yes.  ", "", "  Yes.  "),
        (QWEN, "<thinking is fun", "", "<thinking is fun"),
        (QWEN, "The tag <think> opens it, </think> closes it.", "", "The tag <think> opens it, </think> closes it."),
        (QWEN, "<think>cut off", "cut off", ""),
        (QWEN, "<think>a</think><think>b</think>c", "ab", "c"),
        (MISTRAL, "First. [THINK]hm[/THINK] Then.", "hm", "First.Then."),
        (QWEN, "</think>\n\nYes.", "", "Yes."),
        (QWEN, " </think>Yes. </think>", "", "Yes. </think>"),
        (QWEN, "</think><think>a</think>b", "a", "b"),
        (QWEN, "</thin", "", "</thin"),
        (GEMMA, "Yes. <channel|> Really.", "", "Yes.  Really."),
        (GEMMA, "<channel|>Yes.", "", "Yes."),
        (GEMMA, "<|channel><|channel>thought\nhm<channel|>Yes.", "hm", "Yes."),
        (GEMMA, "First. <|channel><|channel>thought\nhm<channel|>Then.", "hm", "First.Then."),
        (PLAIN, "<think>a</think>b", "", "<think>a</think>b"),
    ],
)
def test_reasoning(read: Read, format: ChatFormat, text: str, reasoning: str, visible: str) -> None:
    answer = read(format, text)
    assert (answer.reasoning, answer.text) == (reasoning, visible)


def test_an_answer_may_begin_inside_reasoning(read: Read) -> None:
    answer = read(QWEN, "\nHm.\n</think>\nYes.", in_reasoning=True)
    assert (answer.reasoning, answer.text) == ("Hm.", "Yes.")


@pytest.mark.parametrize("in_answer", [False, True])
def test_a_closing_tag_that_comes_first_is_not_shown(read: Read, in_answer: bool) -> None:
    """As of models that decide for themselves whether to reason."""
    call = f"</think>\n<tool_call>{WEATHER}</tool_call>"
    answer = read(QWEN, call, in_answer=in_answer)
    assert (answer.text, answer.reasoning, answer.calls) == ("", "", [PARIS])
    assert read(QWEN, "</think>Yes.", in_answer=in_answer).text == "Yes."


def test_reasoning_streams() -> None:
    output = chat_output(QWEN)
    assert output.push(b"<think>", 1) == [Token("", 1, kind="reasoning")]
    assert output.push(b"Hm", 2) == [Token("Hm", 2, kind="reasoning")]
    assert output.push(b" \xf0\x9f", 3) == []
    assert output.push(b"\x98\x80", 4) == [Token(" ", 3, kind="reasoning"), Token("😀", 4, kind="reasoning")]
    assert output.push(b"\n", 5) == []
    assert output.push(b"</think>", 6) == [Token("", 5), Token("", 6)]
    assert output.push(b"\n\n", 7) == [Token("", 7)]
    assert output.push(b"Yes", 8) == [Token("Yes", 8)]


def test_a_call_inside_reasoning_that_is_never_closed_ends_it(read: Read) -> None:
    for sizes in ([1], [7], [10_000]):
        answer = read(QWEN, f"<think>Look it up.\n<tool_call>{WEATHER}</tool_call>\nDone.", sizes)
        assert answer.content[:3] == ("Done.", "Look it up.", [PARIS])
        answer = read(QWEN, f"<think>a <tool_call> b <tool_call>{WEATHER}</tool_call>{WEATHER}", sizes)
        assert answer.content[:3] == (WEATHER, "a <tool_call> b", [PARIS])


@pytest.mark.parametrize(
    "draft",
    [
        f"<tool_call>{WEATHER}</tool_call>",
        f"<tool_call>{WEATHER}",
        '<tool_call>{"name": "stop", "arguments": {"a": "',
        "<tool_call>",
        "<tool_call> is how one calls, or <function=stop><parameter=x>",
        f"<tool_call>{WEATHER}</tool_call><tool_call>{WEATHER}</tool_call>",
        '<function=stop><parameter=a>1</parameter>broken <tool_call>{"name": "stop", "arguments": {}}</tool_call>',
    ],
)
def test_a_call_drafted_in_reasoning_is_part_of_it(read: Read, draft: str) -> None:
    for sizes in ([1], [7], [10_000]):
        answer = read(QWEN, f"<think>First {draft} then.</think>\n\nDone.", sizes)
        assert answer.content[:3] == ("Done.", f"First {draft} then.", [])
        answer = read(QWEN, f"<think>First {draft}</think><tool_call>{WEATHER}</tool_call>", sizes)
        assert answer.content[:3] == ("", f"First {draft}", [PARIS])
        answer = read(QWEN, f"First {draft} then.</think>Done.", sizes, in_reasoning=True)
        assert answer.content[:3] == ("Done.", f"First {draft} then.", [])


def test_reasoning_that_only_names_a_tag_goes_on_streaming(tools: tuple[Tool, ...]) -> None:
    output = chat_output(QWEN, tools=tools, in_reasoning=True)
    text = "".join(token.text for token in output.push(b"The tag <tool_call> is one. And so"))
    assert text == "The tag <tool_call> is one. And so"


# ---------------------------------------------------------------- tool calls


CALLS = {
    "hermes": (QWEN, f"Let me see.\n<tool_call>\n{WEATHER}\n</tool_call>\n<tool_call>{WEATHER}</tool_call>", 2),
    "hermes, an array": (QWEN, f"Let me see. <tool_call>[{WEATHER}, {WEATHER}]</tool_call>", 2),
    "qwen coder": (
        QWEN,
        "Let me see.\n<tool_call>\n<function=get_weather>\n"
        "<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        1,
    ),
    "qwen coder, no tag": (
        QWEN,
        "Let me see.\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        1,
    ),
    "llama, function": (QWEN, 'Let me see.<function=get_weather>{"city": "Paris"}</function>', 1),
    "llama": (LLAMA, '{"name": "get_weather", "parameters": {"city": "Paris"}}', 1),
    "llama, several": (LLAMA, f"{WEATHER}; {WEATHER}", 2),
    "llama, tag": (LLAMA, f"Let me see.<|python_tag|>{WEATHER}", 1),
    "llama, built in": (LLAMA, 'Let me see.<|python_tag|>get_weather.call(city="Paris")', 1),
    "mistral": (MISTRAL, f"Let me see.[TOOL_CALLS] [{WEATHER}, {WEATHER}]", 2),
    "mistral 11": (
        MISTRAL,
        'Let me see.[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Paris"}'
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
        2,
    ),
    "gemma 4": (GEMMA, 'Let me see.<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>', 1),
    "gemma 4, several": (
        GEMMA,
        'Let me see.<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}, '
        'call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>',
        2,
    ),
    "gemma 3": (GENERIC, 'Let me see.\n```tool_code\nprint(get_weather(city="Paris"))\n```', 1),
    "gemma 3, json as code": (GENERIC, f"Let me see.\n```tool_code\n{WEATHER}\n```", 1),
    "gemma 3, json": (GENERIC, f"Let me see.\n```json\n{WEATHER}\n```", 1),
    "generic": (GENERIC, f"Let me see.\n<tool_call>\n{WEATHER}\n</tool_call>", 1),
    "generic, bare": (GENERIC, f"\n{WEATHER}", 1),
    "harmony": (
        HARMONY,
        "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>',
        1,
    ),
    "harmony, role header": (
        HARMONY,
        "<|channel|>final<|message|>Let me see.<|end|><|start|>assistant to=functions.get_weather"
        '<|channel|>commentary json<|message|>{"city": "Paris"}',
        1,
    ),
    "glm": (
        QWEN,
        "Let me see.<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
        1,
    ),
    "minimax": (
        detect_format("<minimax:tool_call>"),
        'Let me see.\n<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n'
        "</invoke>\n</minimax:tool_call>",
        1,
    ),
    "deepseek 3.2": (
        detect_format("｜DSML｜"),
        'Let me see.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        1,
    ),
    "deepseek 3.1": (
        detect_format("<｜tool▁calls▁begin｜>"),
        "Let me see.<｜tool▁calls▁begin｜>"
        + '<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>' * 2
        + "<｜tool▁calls▁end｜>",
        2,
    ),
    "deepseek r1": (
        detect_format("<｜tool▁calls▁begin｜>"),
        "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        '```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        1,
    ),
    "kimi": (
        detect_format("<|tool_calls_section_begin|>"),
        "Let me see.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
        '<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|><|tool_calls_section_end|>',
        1,
    ),
    "lfm": (
        detect_format("<|tool_list_start|>"),
        'Let me see.<|tool_call_start|>[get_weather(city="Paris"), get_weather("Paris")]<|tool_call_end|>',
        2,
    ),
    "functools": (detect_format("functools["), f"Let me see. functools[{WEATHER}]", 1),
}


@pytest.mark.parametrize(("format", "text", "count"), CALLS.values(), ids=CALLS)
def test_calls_in_every_notation(read: Read, format: ChatFormat, text: str, count: int) -> None:
    answer = read(format, text)
    assert answer.calls == [PARIS] * count
    assert answer.text == ("Let me see." if "Let me see" in text else "")
    assert answer.reasoning == ""
    firsts = [token.tool_call for token in answer.tokens if token.tool_call is not None and token.tool_call.name]
    assert [delta.index for delta in firsts] == list(range(count))
    ids = [delta.id for delta in firsts]
    assert len(set(ids)) == count
    for id in ids:
        assert id is not None
        if format.short_ids:
            assert re.fullmatch("[a-z0-9]{9}", id)
    for token in answer.tokens:
        assert (token.kind == "tool_call") == (token.tool_call is not None)
        assert not (token.tool_call and token.text)


@pytest.mark.parametrize(("format", "text", "count"), CALLS.values(), ids=CALLS)
@settings(steady, max_examples=30)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=60))
def test_the_result_does_not_depend_on_the_split(
    read: Read, format: ChatFormat, text: str, count: int, sizes: list[int]
) -> None:
    text += "\nThat is all." if not format.harmony else ""
    answer = read(format, text, sizes)
    assert answer.content == read(format, text, [10_000]).content
    ids = [token.id for token in answer.tokens if token.id is not None]
    assert ids == list(range(len(ids)))


@pytest.mark.parametrize(("format", "text", "count"), CALLS.values(), ids=CALLS)
def test_each_input_byte_gives_one_output_token(read: Read, format: ChatFormat, text: str, count: int) -> None:
    for end in range(0, len(text.encode()) + 1, 7):
        cut = text.encode()[:end].decode("utf-8", "ignore")
        answer = read(format, cut)
        ids = [token.id for token in answer.tokens]
        # A call that the end cuts off is text after all, and comes with one token more.
        assert [id for id in ids if id is not None] == list(range(len(cut.encode())))
        assert ids.count(None) <= (len(answer.calls) < answer.begun)


@pytest.mark.parametrize(("format", "text", "count"), CALLS.values(), ids=CALLS)
def test_calls_are_text_if_the_request_has_no_tools(read: Read, format: ChatFormat, text: str, count: int) -> None:
    answer = read(format, text, tools=())
    assert answer.calls == []
    if not format.harmony:
        assert answer.text == text
    else:
        assert '{"city": "Paris"}' in answer.text + answer.reasoning


def test_arguments_stream_as_they_come(tools: tuple[Tool, ...]) -> None:
    output = chat_output(QWEN, tools=tools)
    pieces = [
        "<tool_call>",
        '{"name": "get_weather",',
        ' "arguments":',
        ' {"ci',
        'ty": "P',
        'aris"}',
        "}",
        "</tool_",
    ]
    out = [output.push(piece.encode(), number) for number, piece in enumerate(pieces)]
    assert [len(tokens) for tokens in out] == [0, 0, 0, 4, 1, 1, 1, 0]
    begun = out[3][-1].tool_call
    assert begun is not None
    assert (begun.index, begun.name, begun.arguments) == (0, "get_weather", '{"ci')
    assert out[4][0].tool_call == ToolCallDelta(0, arguments='ty": "P')
    assert out[5][0].tool_call == ToolCallDelta(0, arguments='aris"}')
    assert [token.id for tokens in out for token in tokens] == list(range(7))
    assert output.push(b"call>", 8) == [Token("", 7), Token("", 8)]


def test_long_text_parameters_stream_too(tools: tuple[Tool, ...]) -> None:
    output = chat_output(QWEN, tools=tools)
    (token,) = output.push(b"<tool_call><function=get_weather><parameter=city>\n", 0)
    assert token.tool_call is not None
    assert token.tool_call.arguments == '{"city": '
    assert output.phase == "call"
    assert output.push(b"word\n", 1) == []
    for number in range(2, 50):
        (token,) = output.push(b"word\n", number)
        assert token.tool_call is not None
        assert (token.id, token.tool_call.arguments) == (number - 1, '"word' if number == 2 else "\\nword")


# ---------------------------------------------------------------- text that is not a call


@pytest.mark.parametrize(
    ("format", "text"),
    [
        (QWEN, "The <tool_call> tag opens a call."),
        (QWEN, 'One writes <tool_call>{"nam": "x"} and so on.'),
        (QWEN, '<tool_call>{"name": "stop", "arguments": [1, 2]}</tool_call>'),
        (QWEN, '<tool_call>{"name": 5}</tool_call>'),
        (QWEN, "<tool_call>unknown<arg_key>"),
        (QWEN, "template <function=other> { }"),
        (QWEN, '<tool_call>{"name": "stop", "argu'),
        (QWEN, "a <tool_call> <tool_call> b"),
        (QWEN, "trailing space before <tool_call>  \n"),
        (MISTRAL, "[TOOL_CALLS] are made like this."),
        (MISTRAL, "[TOOL_CALLS][]"),
        (GEMMA, "<|tool_call>hello"),
        (LLAMA, '{"name": "other", "parameters": {}}'),
        (LLAMA, '{"answer": 42}'),
        (LLAMA, '[1, 2, {"name": "stop"}]'),
        (LLAMA, "<|python_tag|>import os\nprint(os.name)"),
        (GENERIC, '```json\n{"temperature": 20}\n```\nas asked'),
        (GENERIC, "```tool_code\nprint(sum(1, 2))\n```"),
        (detect_format("<|tool_list_start|>"), "<|tool_call_start|>[not python<|tool_call_end|>"),
        (detect_format("<|tool_list_start|>"), f"<|tool_call_start|>{'(' * 5000}<|tool_call_end|>"),
        (detect_format("<|tool_list_start|>"), "<|tool_call_start|>[stop(**options)]<|tool_call_end|>"),
        (detect_format("<|tool_list_start|>"), "<|tool_call_start|>(lambda: 0)()<|tool_call_end|>"),
        (QWEN, '<tool_call>{"arguments": {"a": NaN}, "name": "stop"}</tool_call>'),
        (QWEN, '<tool_call>{"arguments": {"a": [1e999]}, "name": "stop"}</tool_call>'),
        (QWEN, '<tool_call>{"name": "stop", "arguments": "{\\"a\\": -1e999}"}</tool_call>'),
        (QWEN, '<tool_call>{"arguments": {"a": 1], "name": "stop"}</tool_call>'),
        (GEMMA, "<|tool_call>call:stop()"),
        (LLAMA, "<|python_tag|>(1)"),
        (HARMONY, "stop(a=1)"),
        (detect_format("<minimax:tool_call>"), '<minimax:tool_call><invoke name="a b"></invoke></minimax:tool_call>'),
        (
            detect_format("<|tool_calls_section_begin|>"),
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.stop:0<|tool_call_argument_begin|>[1]",
        ),
    ],
)
def test_an_invalid_call_is_text(read: Read, format: ChatFormat, text: str) -> None:
    for sizes in ([1], [5], [10_000]):
        answer = read(format, text, sizes)
        assert (answer.text, answer.calls) == (text, [])


def test_the_text_held_back_for_a_possible_call_is_limited(tools: tuple[Tool, ...]) -> None:
    """A notation that is parsed only when complete may never be completed."""
    output = chat_output(detect_format("<|tool_list_start|>"), tools=tools)
    piece = b"<|tool_call_start|>" + b"word " * 10_000
    tokens = []
    for number in range(9):
        tokens += output.push(piece if number == 0 else piece[-50_000:], number)
    assert tokens
    assert "".join(token.text for token in tokens).startswith("<|tool_call_start|>word word")


BROKEN = {
    "cut off": (QWEN, '<tool_call>{"name": "stop", "arguments": {"a": [1, 2'),
    "cut off in tags": (QWEN, "<tool_call><function=get_weather><parameter=city>Par"),
    "other brackets": (QWEN, '<tool_call>{"name": "stop", "arguments": {"a": [1, 2}} Sorry.'),
    "no comma": (QWEN, '<tool_call>{"name": "stop", "arguments": {"a": 1 "b": 2}}</tool_call>'),
    "no value": (QWEN, '<tool_call>{"name": "stop", "arguments": {"a": }}</tool_call>'),
    "no number": (QWEN, '<tool_call>{"name": "stop", "arguments": {"a": 1e999}}</tool_call>'),
    "not a key": (QWEN, '<tool_call><function=stop><parameter=a"b"c>1</parameter></function></tool_call>'),
    "text between parameters": (QWEN, "<function=stop><parameter=a>1</parameter>and</function>"),
    "gemma": (GEMMA, '<|tool_call>call:stop{a:<|"|>b<|"|>c}<tool_call|>'),
    "python": (detect_format("<|tool_list_start|>"), "<|tool_call_start|>[stop(a=1 b=2)]<|tool_call_end|>"),
    "deepseek": (
        detect_format("<｜tool▁calls▁begin｜>"),
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>stop<｜tool▁sep｜>{"a": b}<｜tool▁call▁end｜>',
    ),
    "harmony": (HARMONY, '<|channel|>commentary to=functions.stop<|message|>{"a": b}'),
}


@pytest.mark.parametrize(("format", "text"), BROKEN.values(), ids=BROKEN)
def test_a_call_that_breaks_off_is_text_whole(read: Read, format: ChatFormat, text: str) -> None:
    for sizes in ([1], [5], [10_000]):
        answer = read(format, f"Well.\n{text}" if not format.harmony else text, sizes)
        assert (answer.reasoning, answer.calls) == ("", [])
        assert answer.text == (f"Well.\n{text}" if not format.harmony else text.partition("<|message|>")[2])


def test_only_the_invalid_one_of_several_calls_is_text(read: Read) -> None:
    for sizes in ([1], [5], [10_000]):
        answer = read(QWEN, f'<tool_call>[{WEATHER}, {{"name": "stop", "arguments": {{"a": b}}}}]</tool_call>', sizes)
        assert answer.calls == [PARIS]
        assert answer.text == ', {"name": "stop", "arguments": {"a": b}}]</tool_call>'


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('{"a": "b",}', {"a": "b"}),
        ('{"a": [1, 2,],}', {"a": [1, 2]}),
        ("{'a': 'it\\'s', 'b': None, 'c': True}", {"a": "it's", "b": None, "c": True}),
        ('{a: "b"}', {"a": "b"}),
        (r'{"a": "\d+ C:\path"}', {"a": "\\d+ C:\\path"}),
        ('{"a": 123456789012345678901234567890}', {"a": 123456789012345678901234567890}),
    ],
)
def test_json_that_models_write_a_little_wrong_is_read(read: Read, written: str, expected: Any) -> None:
    for sizes in ([1], [5], [10_000]):
        answer = read(QWEN, f'<tool_call>{{"name": "stop", "arguments": {written}}}</tool_call>', sizes)
        assert (answer.text, answer.calls) == ("", [("stop", expected)])


@pytest.mark.parametrize("end", ["", "}", "}}", "}}}", "}\n"])
def test_the_braces_around_a_call_may_be_too_few_or_too_many(read: Read, end: str) -> None:
    answer = read(QWEN, '<tool_call>{"name": "stop", "arguments": {"a": {}}' + end + "</tool_call>\nOn we go.")
    assert answer.content == ("On we go.", "", [("stop", {"a": {}})], '{"a": {}}')


def test_line_breaks_in_json_strings_are_escaped(read: Read) -> None:
    answer = read(QWEN, '<tool_call>{"name": "stop", "arguments": {"a": "1\n2\t\\n"}}</tool_call>')
    assert answer.calls == [("stop", {"a": "1\n2\t\n"})]


def test_json_calls_may_have_other_keys_and_another_order(read: Read) -> None:
    for call in (
        '{"arguments": {"city": "Paris"}, "name": "get_weather"}',
        '{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}',
        '{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}',
        '{"tool_name": "get_weather", "parameters": {"city": "Paris"}}',
    ):
        assert read(QWEN, f"<tool_call>{call}</tool_call>").calls == [PARIS]
    assert read(QWEN, '<tool_call>{"name": "stop"}</tool_call>').calls == [("stop", {})]
    assert read(QWEN, '<tool_call>{"name": "stop", "arguments": null}</tool_call>').calls == [("stop", {})]


def test_a_lone_surrogate_in_the_arguments_is_written_as_an_escape(read: Read) -> None:
    for call in (
        '{"name": "stop", "arguments": {"a": "\\ud83d é"}}',
        '{"arguments": {"a": "\\ud83d é"}, "name": "stop"}',
        '{"name": "stop", "arguments": "{\\"a\\": \\"\\\\ud83d é\\"}"}',
    ):
        answer = read(QWEN, f"<tool_call>{call}</tool_call>")
        assert answer.calls == [("stop", {"a": "\ud83d é"})]
        answer.arguments.encode()  # which can be stored and shown


def test_a_forced_call_is_json_alone(read: Read) -> None:
    for format in (QWEN, PLAIN, MISTRAL):
        assert read(format, WEATHER, forced_call=True).calls == [PARIS]
        assert read(format, f"[{WEATHER}, {WEATHER}]", forced_call=True).calls == [PARIS, PARIS]
    answer = read(QWEN, f"Hm.</think>\n\n{WEATHER}", forced_call=True, in_reasoning=True)
    assert answer.content[:3] == ("", "Hm.", [PARIS])


def test_the_call_id_of_the_model_is_kept(read: Read) -> None:
    answer = read(MISTRAL, '[TOOL_CALLS][{"id": "a1b2c3d4e", "name": "stop", "arguments": {}}]')
    (token,) = [token for token in answer.tokens if token.tool_call is not None and token.tool_call.id]
    assert token.tool_call is not None
    assert token.tool_call.id == "a1b2c3d4e"


# ---------------------------------------------------------------- harmony


@pytest.mark.parametrize(
    ("text", "reasoning", "visible"),
    [
        (
            "<|channel|>analysis<|message|>Hm<b>.<|end|><|start|>assistant<|channel|>final<|message|>Yes",
            "Hm<b>.",
            "Yes",
        ),
        ("<|channel|>final<|message|>Yes.<|return|>", "", "Yes."),
        ("Yes.", "", "Yes."),
        ("to=nobody", "", "to=nobody"),
        ("<|channel|>analysis to=python <|constrain|>code<|message|>print(1)<|call|>", "print(1)", ""),
        ("<|channel|>analysis<|message|>Hm<|start|>assistant<|channel|>final<|message|>Yes", "Hm", "Yes"),
        ("<|channel|>final<|message|>Yes<|end|><|start|>assist", "", "Yes"),
        ("<|message|>Yes", "", "Yes"),
    ],
)
def test_harmony(read: Read, text: str, reasoning: str, visible: str) -> None:
    for sizes in ([1], [4], [10_000]):
        assert read(HARMONY, text, sizes).content[:3] == (visible, reasoning, [])
        assert read(HARMONY, text, sizes, tools=()).content[:3] == (visible, reasoning, [])


def test_a_harmony_call_without_a_json_object_is_text(read: Read) -> None:
    for sizes in ([1], [4], [10_000]):
        answer = read(HARMONY, "<|channel|>commentary to=functions.stop<|message|>stop it<|call|>", sizes)
        assert answer.content == ("stop it", "", [], "")


def phases(output: TextAssembler, *pieces: str) -> list[str]:
    """The phase of the output at the beginning, and after each piece."""
    found: list[str] = [output.phase]
    for piece in pieces:
        output.push(piece.encode())
        found.append(output.phase)
    return found


def test_the_phase_of_the_output_is_known(tools: tuple[Tool, ...]) -> None:
    pieces = ["<|channel|>analysis<|message|>Hm", "<|end|><|start|>assistant", "<|channel|>final<|message|>"]
    assert phases(chat_output(HARMONY, tools=tools), *pieces) == ["opening", "reasoning", "opening", "answer"]
    pieces = ["<think>", "Hm", "</think>", "\n", "Yes"]
    assert phases(chat_output(QWEN), *pieces) == ["opening", "reasoning", "reasoning", "answer", "answer", "answer"]
    assert phases(chat_output(QWEN, in_reasoning=True), "</think>") == ["reasoning", "answer"]
    assert phases(chat_output(QWEN, in_answer=True), "Yes") == ["answer", "answer"]
    assert phases(chat_output(PLAIN), "Yes") == ["answer", "answer"]
    assert phases(TextAssembler(), "Yes") == ["answer", "answer"]
    assert phases(chat_output(QWEN, tools=tools, in_answer=True), "<tool_call>") == ["answer", "call"]


# ---------------------------------------------------------------- stop strings


def test_stop_strings_apply_to_the_visible_text_alone(read: Read) -> None:
    answer = read(QWEN, "<think>One. STOP here?</think>Two. STOP three", stops=["STOP"])
    assert (answer.reasoning, answer.text) == ("One. STOP here?", "Two. ")
    call = '<tool_call>{"name": "stop", "arguments": {"a": "STOP"}}</tool_call>'
    answer = read(QWEN, f"{call}done", stops=["STOP", "tool"])
    assert answer.content[:3] == ("done", "", [("stop", {"a": "STOP"})])


def test_a_stop_string_does_not_show_across_reasoning(read: Read) -> None:
    answer = read(MISTRAL, "One ST[THINK]hm[/THINK]OP two", stops=["STOP"])
    assert (answer.text, answer.reasoning) == ("One ", "hm")


@steady
@given(
    parts=st.lists(st.sampled_from([*"<think> </think> ab b < a<tool_call> é".split(), " ", "\n"]), max_size=12),
    stops=st.lists(st.sampled_from(["ab", "b<", "\n\n", "éa", "< "]), max_size=3),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=20),
)
def test_the_place_of_the_stop_does_not_depend_on_the_split(
    read: Read, parts: list[str], stops: list[str], sizes: list[int]
) -> None:
    text = "".join(parts)
    whole = read(QWEN, text, stops=[])
    answer = read(QWEN, text, sizes, stops=stops)
    ends = [(whole.text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in whole.text]
    visible = whole.text if not ends else whole.text[: sum(min(ends))]
    assert answer.text == visible


# ---------------------------------------------------------------- anything at all

FRAGMENTS = """<think> </think> <tool_call> </tool_call> <function= <function=stop> <parameter=city> </parameter>
    </function> [TOOL_CALLS] [ARGS] [CALL_ID]
    [THINK] [/THINK] <|tool_call> <tool_call|> call:stop{a: <|"|> <|channel>thought
    <channel|> <|python_tag|> {"name": "stop" "arguments": get_weather { } [ ] , : ; " \\ 5 null <|channel|> analysis
    final <|message|> <|end|> <|start|> assistant to=functions.stop <|call|> ```json ``` ```tool_code stop( ) text é
    <arg_key> </arg_key> <arg_value> </arg_value>""".split()
FORMATS = {
    "qwen": QWEN,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "llama": LLAMA,
    "generic": GENERIC,
    "harmony": HARMONY,
    "plain": PLAIN,
}


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@steady
@given(
    parts=st.lists(st.sampled_from([*FRAGMENTS, " ", "\n", "\n\n", WEATHER]), max_size=14),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20),
)
def test_no_text_is_lost_with_any_split(read: Read, format: ChatFormat, parts: list[str], sizes: list[int]) -> None:
    text = "".join(parts)
    answer = read(format, text)
    assert answer.content == read(format, text, sizes).content == read(format, text, [10_000]).content
    ids = [token.id for token in answer.tokens]
    if ids and ids[-1] is None:  # the text of a call that the answer's end left incomplete
        ids.pop()
    assert ids == list(range(len(text.encode())))
    tags = format.thinking
    reasons = tags is not None and (tags.opens in text or tags.closes in text)
    if not format.harmony and not reasons and not any(token.tool_call for token in answer.tokens):
        assert answer.text == text


# ---------------------------------------------------------------- formats


def test_formats_are_detected_by_the_texts_of_templates() -> None:
    assert detect_format("{% if x %}<tool_call>{% endif %}</think>") == ChatFormat(THINKING[0], ("<tool_call>",))
    assert detect_format("a <|channel|> b <|message|>") == ChatFormat(harmony=True)
    assert detect_format("[TOOL_CALLS]").short_ids
    assert detect_format("<|start_header_id|> ipython") == ChatFormat(None, ("<|python_tag|>",), bare=True)
    assert detect_format("{{ messages }}") == ChatFormat(None, GENERIC_OPENERS, bare=True)


def test_formats_are_detected_by_the_vocabulary_if_the_template_is_silent() -> None:
    vocabulary = {"<think>", "</think>", "<|tool_call_start|>"}
    assert detect_format("{{ messages }}", vocabulary) == ChatFormat(THINKING[0], ("<|tool_call_start|>",))
    assert detect_format("[/THINK]", vocabulary).thinking == THINKING[3]
