# SPDX-License-Identifier: Apache-2.0
"""The work of parsing a model's output, counted and not timed, so that it is the same on every machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any
from unittest import mock

from inference_bridge.chat.markup import ChatFormat, chat_output
from inference_bridge.chat.reader import Reader
from tests.parts.chat_forms import TOOLS


@dataclass
class Work:
    """Counted work.

    calls: Calls of Python functions and of C functions.
    copied: Copied characters of text that was read: of what is not decided yet, and of every slice of it.
    """

    calls: int = 0
    copied: int = 0


class _Text(str):
    """A text whose slices are counted, and those of its slices."""

    work: Work

    def __getitem__(self, key: Any) -> str:
        return _counted_text(super().__getitem__(key), self.work)


def _counted_text(text: str, work: Work) -> str:
    work.copied += len(text)
    found = _Text(text)
    found.work = work
    return found


@contextmanager
def counted() -> Iterator[Work]:
    """Count what readers do meanwhile, in this thread."""
    work = Work()

    def text_of(reader: Reader) -> str:
        found: str = reader.__dict__["text"]
        return found

    def set_text(reader: Reader, text: str) -> None:
        reader.__dict__["text"] = _counted_text(text, work)

    def note(frame: FrameType, event: str, argument: Any) -> None:
        work.calls += event in ("call", "c_call")

    with mock.patch.object(Reader, "text", property(text_of, set_text), create=True):
        sys.setprofile(note)
        try:
            yield work
        finally:
            sys.setprofile(None)


def work_of(format: ChatFormat, output: str, size: int) -> Work:
    """The work of parsing an output in tokens of `size` bytes."""
    data = output.encode()
    with counted() as work:
        reader = chat_output(format, tools=TOOLS)
        for at in range(0, len(data), size):
            reader.push(data[at : at + size], 0)
        reader.finish()
    return work
