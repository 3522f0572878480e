# SPDX-License-Identifier: Apache-2.0
"""A task that reads buffered tokens does not block the event loop: other tasks run, and it can be cancelled.

Without yielding to the event loop each test would also end, but only after the last token.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from inference_bridge import Request, Token
from inference_bridge._concurrency.mailbox import Sink

from ..parts.models.tiny import Tiny

pytestmark = pytest.mark.usefixtures("no_thread_stays")

ALL = 100_000


class AllThere(Tiny):
    """The tokens of a coroutine that never waits."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.made = 0
        self.meanwhile = meanwhile

    async def _arun(self, request: Request) -> AsyncIterator[Token]:
        for _ in range(ALL):
            self.made += 1
            yield Token("a")
            self.meanwhile()


class AllSent(AllThere):
    """An engine that has sent them before anybody reads."""

    def _astart(self, request: Request, sink: Sink[Token]) -> None:
        for _ in range(ALL):
            sink.put(Token("a"))
        sink.close()


async def _read_until_others_ran(tokens: AsyncIterator[object]) -> int:
    async def other() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    count, task = 0, asyncio.create_task(other())
    async for _ in tokens:
        count += 1
        if task.done():
            break
    return count


async def test_a_stream_gives_turns() -> None:
    async with AllThere().agenerate("", max_tokens=-1) as stream:
        assert await _read_until_others_ran(stream) < ALL


async def test_a_batch_gives_turns() -> None:
    async with AllSent().astream_batch([""], max_tokens=-1) as batch:
        assert await _read_until_others_ran(batch) < ALL


async def test_a_task_that_reads_can_be_cancelled() -> None:
    stream = AllThere().agenerate("", max_tokens=-1)
    reader = asyncio.create_task(stream.result())
    await asyncio.sleep(0)
    assert reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert stream.finish_reason == "cancelled"


async def test_a_batch_is_read_while_it_is_filled() -> None:
    model = AllThere()
    async with model.astream_batch([""], max_tokens=-1) as batch:
        await anext(batch)
        assert model.made < ALL


def test_a_coroutine_that_never_waits_can_be_cancelled() -> None:
    """It runs on a private event loop, for a sync stream."""
    closed = threading.Event()
    model = AllThere(meanwhile=closed.wait)
    with model.generate("", max_tokens=-1) as stream:
        next(stream)
    closed.set()
    for thread in threading.enumerate():
        if thread.name == "inference-bridge-loop":
            thread.join()
    assert model.made < ALL
