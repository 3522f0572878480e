# SPDX-License-Identifier: Apache-2.0
"""Parsing an output takes work proportional to its length, for each family. The work is counted, not timed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from inference_bridge.chat import reader
from inference_bridge.chat.reader import Reader
from tests.parts.chat_forms import FORMS, Form, format_of, written
from tests.parts.work import work_of

pytestmark = pytest.mark.slow

# An output may also arrive at once, as it does over http.
PIECES = {"in pieces": 48, "at once": 10**9}
SHORT, FACTOR = 4_000, 4
LONG = 300_000


def _call(form: Form) -> str:
    return written(form, {"path": "a"})


def _beginning(text: str) -> str:
    return text.strip()[:-1] or "<"


OUTPUTS: dict[str, Callable[[Form, int], str]] = {
    "a long string": lambda form, size: written(form, {"body": "abc d\n<b> {x} " * (size // 14)}),
    "brackets in a string": lambda form, size: written(form, {"body": "[{<(" * (size // 4)}),
    "a long list": lambda form, size: written(form, {"rows": ["ab, c"] * (size // 9)}),
    "many keys": lambda form, size: written(form, {"options": {f"k{number}": number for number in range(size // 12)}}),
    "many calls": lambda form, size: _call(form) * (size // len(_call(form))),
    "half a call": lambda form, size: written(form, {"body": "abc d\n<b> {x} " * (size // 14)})[
        : -len(_call(form)) // 2
    ],
    "beginnings of calls": lambda form, size: _call(form)[:22] * (size // 22),
    "beginnings in reasoning": lambda form, size: form.reasoning[0] + _call(form)[:22] * (size // 22),
    "calls in reasoning": lambda form, size: form.reasoning[0] + _call(form) * (size // len(_call(form))),
    "beginnings of closing tags": lambda form, size: (
        form.reasoning[0] + _beginning(form.reasoning[1]) * (size // len(_beginning(form.reasoning[1])))
    ),
    "shorter beginnings of calls": lambda form, size: form.answer[0] + _call(form)[:14] * (size // 14),
    "reasoning": lambda form, size: form.reasoning[0] + "Hm <b> so. " * (size // 11) + form.reasoning[1] + _call(form),
    "an answer": lambda form, size: form.answer[0] + "Hello <b> {x}, " * (size // 15) + form.answer[1],
    "brackets": lambda form, size: form.answer[0] + "[{<(" * (size // 4),
    "white space": lambda form, size: form.answer[0] + " " * size,
    "white space in a call": lambda form, size: _call(form)[:14] + "\n " * (size // 2),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("pieces", PIECES)
def test_work_grows_with_the_length(name: str, output: str, pieces: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    form, make = FORMS[name], OUTPUTS[output]
    format = format_of(form)
    short, long = make(form, SHORT), make(form, FACTOR * SHORT)
    less, more = work_of(format, short, PIECES[pieces]), work_of(format, long, PIECES[pieces])
    longer = len(long) / len(short)
    # Half as much again: a name is looked for within 1,000 characters, which a short text does not reach.
    assert more.calls <= 1.5 * longer * less.calls
    assert more.copied <= 1.5 * longer * less.copied + 1000


@pytest.mark.parametrize("name", ["hermes", "gpt-oss"])
@pytest.mark.parametrize("output", ["a long string", "calls in reasoning"])
def test_work_grows_with_the_length_of_long_outputs_in_small_pieces(name: str, output: str) -> None:
    """Tokens of a few characters, in an output that is longer than the text that a parser holds back."""
    form, make = FORMS[name], OUTPUTS[output]
    short, long = make(form, LONG // 10), make(form, LONG)
    assert len(long) > reader.HOLD_LIMIT
    less, more = work_of(format_of(form), short, 7), work_of(format_of(form), long, 7)
    longer = len(long) / len(short)
    assert more.calls <= 1.2 * longer * less.calls
    assert more.copied <= 1.2 * longer * less.copied + 1000


def test_copies_of_held_text_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser that keeps all of its input would make these copies."""
    form = FORMS["hermes"]
    text = "a < b. " * 600
    size = PIECES["in pieces"]
    sound = work_of(format_of(form), text, size)
    monkeypatch.setattr(Reader, "forget", lambda self: None)
    assert work_of(format_of(form), text, size).copied > 5 * sound.copied


@pytest.mark.parametrize("name", ["gemma-4", "function-gemma"])
def test_values_without_an_end_are_read_once(
    name: str, monkeypatch: pytest.MonkeyPatch, read: Callable[..., Any]
) -> None:
    """A value without quotes that is longer than what is held is given up, with all that was read of it."""
    monkeypatch.setattr(reader, "HOLD_LIMIT", 2000)
    format = format_of(FORMS[name])
    call = written(FORMS[name], {"path": "a"})
    begun = call[: call.index("{path:") + 8]
    for size in PIECES.values():
        less, more = (work_of(format, begun * (count // len(begun)), size) for count in (16_000, 64_000))
        assert more.calls <= 5 * less.calls
    whole, pieces = (read(format, begun * 400, [size]) for size in (10**9, 3))
    assert (whole.text, whole.calls) == (pieces.text, pieces.calls)
