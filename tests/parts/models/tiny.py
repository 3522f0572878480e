# SPDX-License-Identifier: Apache-2.0
"""The smallest models and backend that an author could write, for tests of everything that is not an engine."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import ClassVar

from inference_bridge import Availability, Backend, LoadConfig, ModelInfo, Request, TextModel, Token


def until(condition: Callable[[], bool]) -> None:
    """Wait until another thread has made a condition true."""
    while not condition():
        time.sleep(0.001)


async def auntil(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - there is no event for the condition
        await asyncio.sleep(0.001)


class Tiny(TextModel):
    """Counts its operations: those that began, and those whose generator has ended."""

    model_type = "tiny"
    info = ModelInfo(architecture="tiny", context_length=100)
    capabilities = frozenset[str]()

    def __init__(self, source: str = "", config: LoadConfig | None = None) -> None:
        self.source = source
        self.config = config
        self.begun = 0
        self.ended = 0
        self.closes = 0

    def close(self) -> None:
        self.closes += 1


def words(request: Request) -> list[Token]:
    text = request.prompt if request.kind == "generate" else request.messages[-1].text
    return [Token(word) for word in re.findall(r"\s*\S+", text)]


class Words(Tiny):
    """Repeats the prompt, or the last message, a word a token."""

    def _run(self, request: Request) -> Iterator[Token]:
        self.begun += 1
        try:
            yield from words(request)
        finally:
            self.ended += 1


class AsyncWords(Tiny):
    """`Words` of an engine that is asynchronous."""

    async def _arun(self, request: Request) -> AsyncIterator[Token]:
        self.begun += 1
        try:
            for token in words(request):
                await asyncio.sleep(0)
                yield token
        finally:
            self.ended += 1


class Waits(Tiny):
    """Repeats the prompt, and then waits until the request is cancelled or its time is over."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Event()
        self.finished = threading.Event()

    def _run(self, request: Request) -> Iterator[Token]:
        self.begun += 1
        cancelled = threading.Event()
        request.on_cancel(cancelled.set)
        try:
            yield from words(request)
            self.waiting.set()
            if not cancelled.wait(request.remaining()):
                raise TimeoutError
        finally:
            self.ended += 1
            self.finished.set()


class AsyncWaits(Waits):
    """`Waits` with an async engine, whose only cancellation is that of asyncio."""

    _run = TextModel._run

    async def _arun(self, request: Request) -> AsyncIterator[Token]:
        self.begun += 1
        try:
            for token in words(request):
                yield token
            self.waiting.set()
            await asyncio.Event().wait()
        finally:
            self.ended += 1
            self.finished.set()


class WordsBackend(Backend):
    """Loads every source that `loads` says yes to, and keeps what it loaded in `loaded`."""

    load_options: ClassVar[frozenset[str] | None] = frozenset({"context_length", "device"})

    def __init__(
        self, name: str = "words", *, missing: str = "", hint: str = "", loads: Callable[[str], bool] = lambda _: True
    ) -> None:
        self.name = name
        self.missing = missing
        self.hint = hint
        self.loads = loads
        self.loaded: list[Words] = []

    def availability(self) -> Availability:
        return Availability(not self.missing, self.missing, self.hint)

    def can_load(self, source: str) -> bool:
        return self.loads(source)

    def load_model(self, source: str, config: LoadConfig) -> TextModel:
        self.loaded.append(Words(source, config))
        return self.loaded[-1]
