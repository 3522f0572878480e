# SPDX-License-Identifier: Apache-2.0
"""Calls to a closed model, and streams that its closing ends (behaviour 11)."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

from ...errors import ModelClosedError, UnsupportedError
from ...interfaces import EmbeddingModel
from ...model import TextModel
from ..base import Contract
from ..callers import Reader, Sync


class Closed:
    """A closed model, and the streams and the batch that existed when it was closed."""

    def __init__(self, suite: type[Contract]) -> None:
        self.model = model = suite.load()
        own = suite()
        self.finished = model.generate(own.prompt, max_tokens=2)
        self.finished.result()
        self.unread = model.generate(own.prompt)
        self.running = model.generate(own.endless, max_tokens=-1)
        self.first = next(self.running)
        self.readers = [Reader(Sync(), lambda caller: caller.generate(model, own.endless, max_tokens=-1))]
        self.readers[0].some.wait(own.hang_timeout)
        self.readers += [  # more streams than the model has slots for
            Reader(Sync(), lambda caller: caller.generate(model, own.endless, max_tokens=-1))
            for _ in range(own.slots(model))
        ]
        self.batch = model.stream_batch([own.endless] * 2, max_tokens=-1)
        closers = [threading.Thread(target=model.close) for _ in range(3)]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join(own.hang_timeout)
            assert not closer.is_alive(), "close() hangs if several threads call it"
        own.within(model.close, "a repeated close()")


class Closing(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (11,)

    @pytest.fixture(scope="class")
    @classmethod
    def after(cls) -> Iterator[Closed]:
        closed = Closed(cls)
        yield closed
        closed.model.close()

    def test_calls_are_refused(self, after: Closed) -> None:
        model: Any = after.model
        assert model.closed
        calls: list[Callable[[], Any]] = [
            lambda: model.generate("x"),
            lambda: model.agenerate("x"),
            lambda: model.batch_generate(["x"]),
            lambda: model.stream_batch(["x"]),
            lambda: model.astream_batch(["x"]),
            lambda: model.classify(["x"]),
            lambda: asyncio.run(model.abatch_generate(["x"])),
            lambda: asyncio.run(model.aclassify(["x"])),
        ]
        if self.chats(model):
            calls += [lambda: model.chat(self.asked()), lambda: model.achat(self.asked())]
        if isinstance(model, EmbeddingModel):
            calls += [lambda: model.embed(["x"]), lambda: asyncio.run(model.aembed(["x"]))]
        for call in calls:
            with pytest.raises(ModelClosedError):
                call()
        with pytest.raises((ModelClosedError, UnsupportedError)):
            model.count_tokens("x")

    def test_streams_that_run_end_with_it(self, after: Closed) -> None:
        with pytest.raises(ModelClosedError):
            list(after.running)
        assert list(after.running) == [], "the error must be raised only once"
        assert after.running.finish_reason is None
        assert after.running.result().tokens[0] == after.first

    def test_streams_that_wait_are_woken(self, after: Closed) -> None:
        for reader in after.readers:
            assert reader.ended(self.hang_timeout), "a thread still waits for the next token of a closed model"
            if reader.error is None:  # its stream had ended before the model was closed
                assert reader.stream.finish_reason in ("stop", "length")
            else:
                assert isinstance(reader.error, ModelClosedError)

    def test_streams_that_were_not_read_end_with_it(self, after: Closed) -> None:
        with pytest.raises(ModelClosedError):
            next(after.unread)

    def test_batches_end_with_it(self, after: Closed) -> None:
        with pytest.raises(ModelClosedError):
            next(after.batch)

    def test_what_had_finished_stays(self, after: Closed) -> None:
        assert after.finished.finish_reason in ("length", "stop")
        assert after.finished.result().tokens
        assert after.finished.metrics.generated_tokens > 0

    def test_a_model_is_a_context_manager_of_both_kinds(self) -> None:
        with self.load() as model:
            assert not model.closed
        assert model.closed
        with pytest.raises(ModelClosedError):
            model.generate("x")

        async def main() -> TextModel:
            async with self.load() as model:
                stream = model.agenerate(self.endless, max_tokens=-1)
                await anext(stream)
            with pytest.raises(ModelClosedError):
                await stream.text()
            return model

        model = self.within(lambda: asyncio.run(main()), "leaving `async with`")
        assert model.closed

    def test_a_dropped_model_is_freed(self) -> None:
        model = self.load()
        stream = model.generate(self.endless, max_tokens=-1)
        next(stream)
        gone = weakref.ref(model)
        del stream, model
        gc.collect()
        self.until(lambda: gone() is None, "a model without references is freed")
