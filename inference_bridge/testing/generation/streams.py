# SPDX-License-Identifier: Apache-2.0
"""How streams start, are read, and end early (behaviour 2)."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any, ClassVar

import pytest

from ...model import TextModel
from ..base import Begun, Contract, only
from ..callers import Reader, Sync


class Streams(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (2,)

    # ------------------------------------------------ beginning

    def test_nothing_runs_before_a_stream_is_read(self, model: TextModel, caller: Sync) -> None:
        with Begun(model) as begun:
            unread = caller.generate(model, self.prompt, max_tokens=2)
            assert begun.count == 0
            assert unread.finish_reason is None
            next(unread)
            assert begun.count > 0
            unread.close()

    def test_a_stream_that_is_closed_unread_never_runs(self, model: TextModel, caller: Sync) -> None:
        with Begun(model) as begun:
            unread = caller.generate(model, self.prompt)
            unread.close()
            assert list(unread) == []
            assert unread.finish_reason == "cancelled"
            assert begun.count == 0

    def test_unread_streams_hold_no_slot(self, model: TextModel) -> None:
        unread = [model.generate(self.endless, max_tokens=-1) for _ in range(self.slots(model) + 1)]
        self.is_free(model)
        for stream in unread:
            stream.close()

    # ------------------------------------------------ reading

    def test_a_stream_is_used_once(self, model: TextModel, caller: Sync) -> None:
        stream = caller.generate(model, self.prompt, **self.greedily(model))
        tokens = list(stream)
        metrics = stream.metrics
        with Begun(model) as begun:
            assert list(stream) == []
            assert stream.text() == only(tokens, "text")
            assert begun.count == 0
        assert stream.metrics == metrics

    def test_text_and_result_drain_the_rest(self, model: TextModel, caller: Sync) -> None:
        stream = caller.generate(model, self.prompt, **self.greedily(model))
        first = next(stream)
        text = stream.text()
        result = stream.result()
        assert result.tokens[0] == first
        assert text == result.text == only(result.tokens, "text")
        assert len(result.tokens) > 1
        assert next(stream, None) is None

    # ------------------------------------------------ ending early

    def test_closing_ends_a_stream(self, model: TextModel, caller: Sync) -> None:
        stream = caller.generate(model, self.endless, max_tokens=-1)
        read = [next(stream) for _ in range(2)]
        stream.close()
        stream.close()
        assert list(stream) == []
        assert stream.finish_reason == "cancelled"
        assert list(stream.result().tokens) == read
        self.is_free(model)

    def test_leaving_with_ends_a_stream(self, model: TextModel, caller: Sync) -> None:
        with caller.generate(model, self.endless, max_tokens=-1) as stream:
            next(stream)
        assert stream.finish_reason == "cancelled"
        assert list(stream) == []
        with pytest.raises(ZeroDivisionError), caller.generate(model, self.endless, max_tokens=-1) as stream:
            1 / (next(stream) is None)
        assert stream.finish_reason == "cancelled"
        self.is_free(model)

    def test_a_finished_stream_stays_as_it_is(self, model: TextModel, caller: Sync) -> None:
        with caller.generate(model, self.prompt, **self.greedily(model)) as stream:
            stream.text()
            reason, metrics = stream.finish_reason, stream.metrics
        stream.close()
        assert reason in ("stop", "length")
        assert (stream.finish_reason, stream.metrics) == (reason, metrics)

    def test_dropping_ends_a_stream(self, model: TextModel, caller: Sync) -> None:
        for _ in range(2 * self.slots(model)):
            stream = caller.generate(model, self.endless, max_tokens=-1)
            next(stream)
            gone = weakref.ref(getattr(stream, "stream", stream))
            del stream
            if gone() is not None:
                gc.collect()
            assert gone() is None, "a dropped stream is still referenced"
        self.is_free(model)

    def test_closing_from_another_thread_wakes_the_reader(self, model: TextModel, caller: Sync) -> None:
        holders = [model.generate(self.endless, max_tokens=-1) for _ in range(self.slots(model))]
        for holder in holders:  # if the number of slots is limited, the reader now waits for a slot
            next(holder)
        reader = Reader(caller, lambda own: own.generate(model, self.endless, max_tokens=-1))
        reader.close()
        assert reader.ended(self.hang_timeout), (
            "a thread still waits for the next token of a stream that another thread closed"
        )
        assert reader.error is None
        assert reader.stream.finish_reason is not None
        for holder in holders:
            holder.close()
        self.is_free(model)

    def test_closing_while_another_thread_reads_ends_the_stream(self, model: TextModel, caller: Sync) -> None:
        reader = Reader(caller, lambda own: own.generate(model, self.endless, max_tokens=-1))
        assert reader.some.wait(self.hang_timeout), "no token came"
        reader.close()
        assert reader.ended(self.hang_timeout)
        assert reader.error is None
        assert reader.result is not None
        assert reader.result.tokens == tuple(reader.read)
        if reader.stream.finish_reason != "cancelled":  # the stream had ended before it was closed
            assert len(reader.read) > 1
        self.is_free(model)

    def test_cancelling_a_task_ends_its_stream(self, model: TextModel) -> None:
        async def main() -> None:
            begun = asyncio.Event()

            async def consume(stream: Any) -> None:
                async for _ in stream:
                    begun.set()
                    await asyncio.sleep(0)
                await asyncio.Event().wait()  # the stream has ended: wait to be cancelled

            stream = model.agenerate(self.endless, max_tokens=-1)
            task = asyncio.create_task(consume(stream))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await stream.aclose()
            assert stream.finish_reason is not None
            assert [token async for token in stream] == []

            waiting = asyncio.create_task(model.agenerate(self.endless, max_tokens=-1).text())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])

        self.within(lambda: asyncio.run(main()), "cancelling a task that reads a stream")
        self.is_free(model)

    # ------------------------------------------------ a slow consumer delays no other operation

    def test_a_half_read_stream_holds_up_nobody(self, model: TextModel, caller: Sync) -> None:
        """The half-read stream also keeps all of its tokens while other streams start, end and are cancelled."""
        whole = self.alone(model)
        half = [caller.generate(model, self.prompt, **self.greedily(model)) for _ in range(self.slots(model))]
        read = [[next(stream)] for stream in half]
        self.is_free(model)
        for stream in half[1:]:
            stream.close()
        tokens = [*read[0], *half[0]]
        assert half[0].finish_reason == whole.finish_reason
        assert len(tokens) == len(whole.tokens) == len(half[0].result().tokens)
        if self.repeats:
            assert only(tokens, "text") == whole.text
