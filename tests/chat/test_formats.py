# SPDX-License-Identifier: Apache-2.0
"""Round trips: a minimal form of each family's template writes a call, and the parser reads it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from inference_bridge.chat import markup
from inference_bridge.chat.formats import (
    FAMILIES,
    OPENERS,
    AnswerTags,
    ChatFamily,
    NoCallError,
    Reader,
    Steps,
    register_chat_format,
)
from inference_bridge.chat.markup import chat_output, detect_format
from tests.parts.chat_forms import DSML, FORMS, TOOLS, format_of, written

Read = Callable[..., Any]

steady = settings(
    derandomize=True,
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

TEXTS = st.text(
    st.sampled_from("ab \n\t\r{}[]()<>\"'\\,:;=|/#&%$é😀\u2028") | st.characters(exclude_categories=["Cs", "Cc"]),
    max_size=12,
)
NUMBERS = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "path": TEXTS,
        "body": TEXTS,
        "rows": st.lists(TEXTS, min_size=1, max_size=3),
        "count": st.integers(-(10**30), 10**30),
        "share": NUMBERS,
        "on": st.booleans(),
        "options": st.dictionaries(
            st.text("abc", min_size=1, max_size=3), st.booleans() | st.integers(), min_size=1, max_size=3
        ),
    },
)


def without(value: Any, texts: tuple[str, ...]) -> Any:
    """The value, without the beginnings of texts that end a value."""
    if isinstance(value, str):
        for text in texts:
            value = value.replace(text[0], "-")
        return value
    if isinstance(value, dict):
        return {key: without(inner, texts) for key, inner in value.items()}
    return [without(inner, texts) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", FORMS)
@steady
@given(arguments=ARGUMENTS, sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20))
@example(arguments={"path": "a.txt", "body": "one\n"}, sizes=[1])
@example(arguments={"path": "\n\none\n\n", "body": " two "}, sizes=[2])
@example(arguments={"path": "\"a\", {b: [c]} = 'd'", "body": "e\\n\\"}, sizes=[3])
@example(arguments={"path": "true", "body": "5", "count": 123456789012345678901234567890}, sizes=[4])
@example(arguments={"rows": ["a, b", "c\n", "", " "], "options": {"a": 1}}, sizes=[5])
@example(arguments={}, sizes=[6])
def test_a_call_that_the_template_writes_is_read_back_exactly(
    read: Read, name: str, arguments: dict[str, Any], sizes: list[int]
) -> None:
    form = FORMS[name]
    arguments = without(arguments, form.never)
    text = written(form, arguments)
    format = format_of(form)
    for pieces in ([1], sizes, [10**6]):
        answer = read(format, text, pieces, tools=TOOLS)
        assert answer.calls == [("save", arguments)]
        assert (answer.text, answer.reasoning) == ("", "")


@pytest.mark.parametrize("name", FORMS)
def test_text_and_reasoning_around_a_call_are_not_changed(read: Read, name: str) -> None:
    form = FORMS[name]
    format = format_of(form)
    call = written(form, {"path": "a"})
    opens, closes = form.reasoning
    for pieces in ([1], [4], [10**6]):
        if closes:
            answer = read(format, f"{opens}Hm, {{well}}.{closes}{call}", pieces, tools=TOOLS)
            assert (answer.reasoning, answer.text, answer.calls) == ("Hm, {well}.", "", [("save", {"path": "a"})])
            answer = read(format, f"{opens}Hm.{closes}{form.answer[0]}Hello <b>.{form.answer[1]}", pieces, tools=TOOLS)
            assert (answer.reasoning, answer.text, answer.calls) == ("Hm.", "Hello <b>.", [])
        elif any(form.answer):
            answer = read(format, f"{form.answer[0]}Hello <b>.{form.answer[1]}", pieces, tools=TOOLS)
            assert (answer.reasoning, answer.text, answer.calls) == ("", "Hello <b>.", [])


@pytest.mark.parametrize("name", FORMS)
def test_the_time_of_a_long_value_is_proportional_to_its_length(name: str) -> None:
    """The characters that are looked at are counted, by the length of the texts that wait at each piece."""
    form = FORMS[name]
    format = format_of(form)
    text = written(form, {"rows": ["word " * 2000], "path": "word " * 2000})
    output = chat_output(format, tools=TOOLS)
    parser = output._parser
    assert isinstance(parser, Reader)
    waiting = 0
    for at in range(0, len(text), 4):
        output.push(text[at : at + 4].encode())
        waiting += len(parser.text) if parser._wakes is None else 0
    assert waiting < 100 * len(text)


def test_every_supported_family_has_a_round_trip_test() -> None:
    openers = {opener for form in FORMS.values() for opener in format_of(form).openers}
    tested = {opener for opener in openers if any(opener in form.call for form in FORMS.values())}
    others = {
        "```json",
        "```tool_call",
        "<|python_tag|>",
        f"<{DSML}toolcalls>",
        f"<{DSML}tool>",
        "<tool_call>",
        "<atem:function_calls>",
    }
    assert {opener for family in FAMILIES.values() for opener in family.calls} <= tested | others


# ---------------------------------------------------------------- other families


def _mine(reader: Reader) -> Steps[None]:
    name = yield from reader.word()
    yield from reader.space()
    if (yield from reader.peek()) != "{":
        raise NoCallError
    reader.begin_call(name)
    yield from reader.stream_object()
    yield from reader.space()
    yield from reader.expect("</my call>")
    reader.drop()


def test_a_family_that_is_registered_is_read(read: Read) -> None:
    families, openers = dict(FAMILIES), dict(OPENERS)
    try:
        register_chat_format(
            ChatFamily("mine", [["<my call>"]], calls={"<my call>": _mine}, answer=[AnswerTags("<mine>", "</mine>")])
        )
        format = detect_format("… <my call> …")
        answer = read(format, '<my call>save {"path": "a"}</my call>', tools=TOOLS)
        assert (answer.text, answer.calls) == ("", [("save", {"path": "a"})])
        assert read(format, "<mine>Hello</mine>", tools=TOOLS).text == "Hello"
        assert read(format, "<my call>save it</my call>", tools=TOOLS).text == "<my call>save it</my call>"
    finally:
        for known, before in ((FAMILIES, families), (OPENERS, openers)):
            known.clear()
            known.update(before)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "family",
    [
        ChatFamily("", [["a"]]),
        ChatFamily("x", [[""]]),
        ChatFamily("x", [[]]),
        ChatFamily("x", [["a"]], calls={"": _mine}),
        ChatFamily("x", [["a"]], answer=[AnswerTags("")]),
    ],
)
def test_a_family_with_empty_texts_is_refused(family: ChatFamily) -> None:
    with pytest.raises(ValueError, match="empty"):
        register_chat_format(family)


def test_unknown_markup_is_reported_once(
    read: Read, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(markup, "_reported", set())  # other tests have read as much of it as is reported
    format = detect_format("<tool_call> </think>")
    for sizes in ([1], [4], [10_000]):
        read(format, "Well. <|some_call:begin|>save", sizes)
        read(format, "5 < 6 <tool_call>save</tool_call> <b>bold</b> <tool_call>", sizes)
    (record,) = [record for record in caplog.records if record.name.startswith("inference_bridge")]
    assert "<|some_call:begin|>" in record.getMessage()
