# SPDX-License-Identifier: Apache-2.0
"""Outputs with a fault: each value appears either in a call or in the text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.parts.chat_forms import FORMS, TOOLS, format_of, written

Read = Callable[..., Any]

WORDS = [f"ZQ{number}X" for number in range(5)]
# Texts that are inserted into a call as faults.
_MISTAKES = ('"', ",", "}", "]", "<", "\n", "x", "x>", "<|")


def spoilt(name: str, rng: random.Random) -> str:
    """Two calls of a family, with text around them. The first call is cut off, or text is inserted or removed."""
    form = FORMS[name]
    (opens, closes), (before, after) = form.reasoning, form.answer
    first = written(form, {"path": WORDS[0], "body": WORDS[1] + rng.choice(("", " ", "\n", "\n\n"))})
    second = written(form, {"path": WORDS[2]})
    at = rng.randrange(len(first))
    kind = rng.randrange(5)
    if kind == 0:
        return f"{opens}{WORDS[3]}{closes}{first[:at]}"
    if kind == 1:
        return first[:at] + rng.choice(_MISTAKES) + first[at:] + second
    if kind == 2:
        return f"{opens}{WORDS[3]}{closes}{first[:at]}{first[at + rng.randrange(1, 12) :]}{second}"
    if kind == 3:
        return f"{opens}{WORDS[3]} {first} {WORDS[4]}{closes}{before}Hello{after}"
    return f"{first}{before}{WORDS[3]}{after}{second}"


# If the output consists of messages, the header of a message is not part of the text.
@pytest.mark.parametrize("name", [name for name in FORMS if name not in ("muse", "gpt-oss")])
def test_a_value_is_in_a_call_or_in_the_text(read: Read, name: str) -> None:
    rng = random.Random(name)
    format = format_of(FORMS[name])
    for _ in range(40):
        output = spoilt(name, rng)
        answer = read(format, output, [rng.choice((1, 3, 10_000))], tools=TOOLS)
        found = answer.text + answer.reasoning + json.dumps(answer.calls)
        for word in WORDS:
            assert found.count(word) == output.count(word), (word, output)


@pytest.mark.parametrize("name", FORMS)
def test_a_mistake_beside_markup_reads_the_same_in_pieces_and_whole(read: Read, name: str) -> None:
    form = FORMS[name]
    format = format_of(form)
    said = written(form, {"path": "a", "options": {"b": [1]}}) + written(form, {"path": "c"})
    marks = [at for at, character in enumerate(said) if character in "<>[{|"]
    for at in marks:
        for mistake in ("<", "|", "\n", "é"):
            output = said[:at] + mistake + said[at:]
            whole = read(format, output, [len(output)], tools=TOOLS)
            for size in (1, 3):
                pieces = read(format, output, [size], tools=TOOLS)
                assert (pieces.text, pieces.reasoning, pieces.calls) == (whole.text, whole.reasoning, whole.calls), (
                    output
                )


JSON_FORMS = [name for name, form in FORMS.items() if '"arguments": {{' in form.call]


@pytest.mark.parametrize("name", JSON_FORMS)
@pytest.mark.parametrize("key", ["argumets", "args", "input", "path"])
def test_a_call_with_another_key_in_place_of_its_arguments_is_not_made(read: Read, name: str, key: str) -> None:
    form = FORMS[name]
    output = written(form, {"path": "a"}).replace('"arguments"', f'"{key}"')
    for sizes in ([1], [10_000]):
        answer = read(format_of(form), output, sizes, tools=TOOLS)
        assert answer.calls == []
        assert f'"{key}": {{"path": "a"}}' in answer.text + answer.reasoning  # Apriel begins by reasoning


@pytest.mark.parametrize(
    ("call", "left"),
    [
        ('{"name": "save", "arguments": {"path": "a"}, "body": "b"}', '"body": "b"'),
        ('{"name": "save", "arguments": {"path": "a"}, "arguments": {"body": "b"}}', '{"body": "b"}'),
        ('{"name": "save", "arguments": {"path": "a"}, "name": "clock"}', '"clock"'),
    ],
)
def test_content_after_the_arguments_inside_a_call_is_text(read: Read, call: str, left: str) -> None:
    for sizes in ([1], [10_000]):
        answer = read(format_of(FORMS["hermes"]), f"<tool_call>\n{call}\n</tool_call>", sizes, tools=TOOLS)
        assert answer.calls == [("save", {"path": "a"})]
        assert left in answer.text


def test_further_keys_beside_the_arguments_are_ignored(read: Read) -> None:
    call = '<tool_call>{"id": "1", "index": 0, "name": "save", "thought": "x", "arguments": {"path": "a"}}</tool_call>'
    assert read(format_of(FORMS["hermes"]), call, [3], tools=TOOLS).calls == [("save", {"path": "a"})]
    assert read(format_of(FORMS["hermes"]), '<tool_call>{"name": "clock"}</tool_call>', [3], tools=TOOLS).calls == [
        ("clock", {})
    ]
