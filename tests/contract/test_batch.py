# SPDX-License-Identifier: Apache-2.0
"""Batches: order of results, concurrency, laziness, and failures of single prompts."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_bridge import (
    AsyncBatchStream,
    BatchResult,
    BatchStream,
    ContextLengthExceededError,
    GenerationError,
    GenerationTimeoutError,
    ModelClosedError,
    Request,
    TextModel,
    Token,
)
from inference_bridge._concurrency.mailbox import Sink

from ..parts.models.tiny import AsyncWaits, AsyncWords, Tiny, Waits, Words, auntil, until

pytestmark = pytest.mark.usefixtures("no_thread_stays")
EITHER = pytest.mark.parametrize("kind", [Words, AsyncWords])
EITHER_WAITS = pytest.mark.parametrize("kind", [Waits, AsyncWaits])


async def _slowly(prompts: list[str]) -> AsyncIterator[str]:
    for prompt in prompts:
        await asyncio.sleep(0)
        yield prompt


class Failing(Words):
    """Fails at prompts that name an error."""

    parallel = 3

    def _run(self, request: Request) -> Iterator[Token]:
        yield Token("so far ")
        if request.prompt == "value":
            raise ValueError("bad value")
        if request.prompt == "long":
            raise ContextLengthExceededError(9, 3)
        if request.prompt == "stop":
            raise KeyboardInterrupt
        yield from super()._run(request)


# ---------------------------------------------------------------- results

prompts = st.lists(st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=4).map(" ".join), max_size=8)


@given(prompts, st.integers(1, 5))
def test_results_are_in_the_prompts_order(texts: list[str], parallel: int) -> None:
    model = Words()
    model.parallel = parallel
    results = model.batch_generate(texts)
    assert [result.text for result in results] == texts
    for result, text in zip(results, texts, strict=True):
        assert result.finish_reason == "stop"
        assert result.error is None
        assert result.metrics.generated_tokens == len(text.split())
    assert not model._life.running


@EITHER
async def test_async_results_are_in_the_prompts_order(kind: type[Tiny]) -> None:
    model = kind()
    model.parallel = 3
    texts = [f"{number} of {number % 4 * 'many '}".rstrip() for number in range(20)]
    assert [result.text for result in await model.abatch_generate(texts)] == texts
    assert [result.text for result in model.batch_generate(texts)] == texts
    assert await model.abatch_generate([]) == model.batch_generate([]) == []


@EITHER
async def test_a_stream_has_each_prompt_s_tokens_in_order(kind: type[Tiny]) -> None:
    model = kind()
    model.parallel = 4
    texts = [" ".join(f"{number}.{word}" for word in range(number % 5)) for number in range(30)]
    for read in ("sync", "async", "async prompts"):
        seen = dict.fromkeys(range(30), "")
        if read == "sync":
            for index, token in model.stream_batch(texts):
                seen[index] += token.text
        else:
            async for index, token in model.astream_batch(texts if read == "async" else _slowly(texts)):
                seen[index] += token.text
        assert list(seen.values()) == texts


def test_max_tokens_is_each_prompt_s() -> None:
    results = Words().batch_generate(["a b c", "d", "e f"], max_tokens=2)
    assert [(result.text, result.finish_reason) for result in results] == [
        ("a b", "length"), ("d", "stop"), ("e f", "stop"),
    ]  # fmt: skip


async def test_max_tokens_ends_an_endless_answer() -> None:
    class Endless(Tiny):
        parallel = 2

        def _run(self, request: Request) -> Iterator[Token]:
            while True:
                yield Token("x")

    for results in (
        Endless().batch_generate([""] * 3, max_tokens=4),
        await Endless().abatch_generate([""] * 3, max_tokens=4),
    ):
        assert [(result.text, result.finish_reason) for result in results] == [("xxxx", "length")] * 3


def test_results_of_a_batch_that_was_read_are_refused() -> None:
    stream = Words().stream_batch(["a b", "c"])
    next(stream)
    with pytest.raises(RuntimeError, match="reading began"):
        stream.results()
    stream.close()


# ---------------------------------------------------------------- failures


async def test_a_failed_prompt_does_not_affect_the_others() -> None:
    texts = ["a", "value", "b", "long", "c"]
    for results in (Failing().batch_generate(texts), await Failing().abatch_generate(texts)):
        assert [result.text for result in results] == ["so far a", "so far ", "so far b", "so far ", "so far c"]
        failed = [result.error for result in results]
        assert failed[0] is failed[2] is failed[4] is None
        assert type(failed[1]) is GenerationError
        assert isinstance(failed[1].__cause__, ValueError)
        assert isinstance(failed[3], ContextLengthExceededError)
        for error in (failed[1], failed[3]):
            assert isinstance(error, GenerationError)
            assert error.partial is not None
            assert error.partial.text == "so far "
        assert [result.finish_reason for result in results] == ["stop", None, "stop", None, "stop"]


async def test_a_stream_keeps_failures_by_index() -> None:
    stream = Failing().stream_batch(["a", "value", "b"])
    assert len(list(stream)) == 5
    assert list(stream.errors) == [1]
    astream = Failing().astream_batch(["long", "b"])
    assert len([pair async for pair in astream]) == 3
    assert isinstance(astream.errors[0], ContextLengthExceededError)


async def test_a_prompt_that_is_not_text_fails_alone() -> None:
    mixed: Any = ["a", 3, "b"]
    stream = Words().stream_batch(mixed)
    assert [token.text for _, token in stream] == ["a", "b"]
    assert "prompt must be a str, not int" in str(stream.errors[1])
    astream = Words().astream_batch(_slowly(mixed))
    assert [token.text async for _, token in astream] == ["a", "b"]
    assert isinstance(astream.errors[1], TypeError)


def test_a_prompt_that_can_not_even_start_fails_alone() -> None:
    class Refuses(Words):
        def _start(self, request: Request, sink: Sink[Token]) -> None:
            if request.prompt == "no":
                raise ContextLengthExceededError(9, 3)
            super()._start(request, sink)

    results = Refuses().batch_generate(["a", "no", "b"])
    assert [result.text for result in results] == ["a", "", "b"]
    assert isinstance(results[1].error, ContextLengthExceededError)


def test_an_interrupt_ends_the_whole_batch() -> None:
    model = Failing()
    with pytest.raises(KeyboardInterrupt):
        model.batch_generate(["a", "stop", "b"])
    assert not model._life.running


async def test_prompts_that_fail_to_come_end_the_batch() -> None:
    def few() -> Iterator[str]:
        yield "a"
        yield "b"
        raise LookupError("the file ends here")

    async def afew() -> AsyncIterator[str]:
        for prompt in few():
            yield prompt

    model = Waits()
    model.parallel = 3
    with pytest.raises(LookupError, match="the file ends here"):
        list(model.stream_batch(few()))
    assert not model._life.running
    for iterable in (few(), afew()):
        with pytest.raises(LookupError, match="the file ends here"):
            _ = [pair async for pair in model.astream_batch(iterable)]
        assert not model._life.running
    until(lambda: model.begun == model.ended)


@EITHER_WAITS
async def test_timeout_is_each_prompt_s(kind: type[Waits]) -> None:
    model = kind()
    model.parallel = 2
    for results in (
        model.batch_generate(["a"] * 3, timeout=0.2),
        await model.abatch_generate(["a"] * 3, timeout=0.2),
    ):
        assert [result.text for result in results] == ["a"] * 3
        assert all(isinstance(result.error, GenerationTimeoutError) for result in results)


def test_a_token_that_comes_after_the_time_is_over_is_the_last() -> None:
    class Late(Words):
        def _start(self, request: Request, sink: Sink[Token]) -> None:
            until(lambda: request.remaining() == 0)
            super()._start(request, sink)

    (result,) = Late().batch_generate(["a b"], timeout=0.001)
    assert isinstance(result.error, GenerationTimeoutError)
    assert result.text == "a"


# ---------------------------------------------------------------- laziness


class Counted:
    """Prompts that count how many were taken."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = 0

    def __iter__(self) -> Iterator[str]:
        for _ in range(self.count):
            self.taken += 1
            yield "a b c"

    async def aiter(self) -> AsyncIterator[str]:
        for prompt in self:
            yield prompt


@EITHER
@pytest.mark.parametrize("parallel", [1, 3])
def test_prompts_are_taken_only_for_free_slots(kind: type[Tiny], parallel: int) -> None:
    model, source = kind(), Counted(20)
    model.parallel = parallel
    stream = model.stream_batch(source)
    assert source.taken == model.begun == 0
    ended = set()
    for index, token in stream:
        if token.text == " c":
            ended.add(index)
        assert source.taken <= len(ended) + parallel
        assert model.begun <= source.taken
    assert source.taken == len(ended) == 20


@pytest.mark.parametrize("prompts", [iter, Counted.aiter])
async def test_an_async_batch_is_as_lazy(prompts: Callable[[Counted], Any]) -> None:
    model, source = Words(), Counted(20)
    model.parallel = 3
    stream = model.astream_batch(prompts(source))
    ended = 0
    async for _, token in stream:
        ended += token.text == " c"
        assert source.taken <= ended + 3
    assert source.taken == ended == 20


def test_a_slow_consumer_delays_the_intake_of_prompts_and_not_the_engine() -> None:
    model, source = Words(), Counted(50)
    model.parallel = 2
    stream = model.stream_batch(source)
    next(stream)
    until(lambda: model.ended == 2)  # both ended although no result was read
    assert source.taken == model.begun == 2
    stream.close()


def test_memory_does_not_grow_with_the_number_of_prompts() -> None:
    alive: weakref.WeakSet[Request] = weakref.WeakSet()
    most = 0

    class Watched(TextModel):
        info = Words.info
        capabilities = frozenset()
        parallel = 4

        def _run(self, request: Request) -> Iterator[Token]:
            raise AssertionError

        def _start(self, request: Request, sink: Sink[Token]) -> None:
            alive.add(request)
            for _ in range(3):
                sink.put(Token("x"))
            sink.close()

        def close(self) -> None: ...

    model = Watched()
    stream = model.stream_batch(str(number) for number in range(5_000))
    count = 0
    for _ in stream:
        count += 1
        most = max(most, len(alive))
    assert count == 15_000
    assert most <= 5
    assert not alive
    assert not stream.errors
    assert stream._results is None


async def test_tokens_do_not_wait_for_a_prompt_that_is_yet_to_come() -> None:
    more = asyncio.Event()

    async def typed() -> AsyncIterator[str]:
        yield "a b"
        await more.wait()
        yield "c"

    for kind in (Words, AsyncWords):
        more.clear()
        model = kind()
        model.parallel = 4
        stream = model.astream_batch(typed())
        read = [await asyncio.wait_for(anext(stream), 30) for _ in range(2)]
        assert [token.text for _, token in read] == ["a", " b"]
        more.set()
        assert [(index, token.text) async for index, token in stream] == [(1, "c")]


async def test_an_async_engine_runs_on_the_loop_of_an_async_batch() -> None:
    class Here(AsyncWords):
        loops: ClassVar[list[object]] = []

        async def _arun(self, request: Request) -> AsyncIterator[Token]:
            self.loops.append(asyncio.get_running_loop())
            async for token in super()._arun(request):
                yield token

    assert [result.text for result in await Here().abatch_generate(["a", "b"])] == ["a", "b"]
    assert Here.loops == [asyncio.get_running_loop()] * 2


# ---------------------------------------------------------------- ending early


@EITHER
async def test_closing_early_frees_what_is_in_flight(kind: type[Tiny]) -> None:
    model = kind()
    model.parallel = 3
    with model.stream_batch(Counted(100)) as stream:
        next(stream)
    assert list(stream) == []
    async with model.astream_batch(Counted(100)) as astream:
        await anext(astream)
    assert [pair async for pair in astream] == []
    async with model.astream_batch(Counted(100).aiter()) as astream:
        await anext(astream)
    assert not model._life.running
    await auntil(lambda: model.begun == model.ended)


@EITHER
async def test_dropping_a_batch_frees_what_is_in_flight(kind: type[Tiny]) -> None:
    model = kind()
    model.parallel = 3
    stream = model.stream_batch(Counted(100))
    next(stream)
    del stream
    astream = model.astream_batch(Counted(100).aiter())
    await anext(astream)
    del astream
    gc.collect()
    assert not model._life.running
    await auntil(lambda: model.begun == model.ended)


def test_closing_from_another_thread_wakes_the_consumer() -> None:
    class Deaf(Words):
        """Ignores cancellation."""

        def _start(self, request: Request, sink: Sink[Token]) -> None:
            sink.put(Token("a"))

    stream = Deaf().stream_batch(["x", "y"])
    read: list[Any] = []
    reader = threading.Thread(target=lambda: read.extend(stream))
    reader.start()
    until(lambda: len(read) == 1)
    stream.close()
    reader.join()
    assert read == [(0, Token("a"))]


@EITHER_WAITS
async def test_cancelling_the_task_ends_the_batch(kind: type[Waits]) -> None:
    model = kind()
    model.parallel = 2
    task = asyncio.create_task(model.abatch_generate(["a", "b", "c"]))
    await asyncio.to_thread(model.waiting.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not model._life.running
    await auntil(lambda: model.begun == model.ended)


async def test_what_is_admitted_while_the_batch_is_closed_is_freed() -> None:
    model = Waits()
    model.parallel = 2

    def closing() -> Iterator[str]:
        yield "a"
        stream.close()
        yield "b"

    stream: BatchStream[str] | AsyncBatchStream[str]
    stream = batch = model.stream_batch(closing())
    assert list(batch) == []
    assert not model._life.running
    stream = abatch = model.astream_batch(closing())
    assert [pair async for pair in abatch] == []
    assert not model._life.running
    await auntil(lambda: model.begun == model.ended)


async def test_closing_an_unread_or_closed_batch_has_no_effect() -> None:
    prompts = iter(["a", "b"])
    async with Words().astream_batch(prompts) as astream:
        astream.close()
    assert [pair async for pair in astream] == []
    with Words().stream_batch(prompts) as stream:
        stream.close()
    assert list(stream) == []
    assert list(prompts) == ["a", "b"]


def test_a_failed_start_while_the_batch_is_closed_is_not_reported() -> None:
    class Closes(Words):
        def _start(self, request: Request, sink: Sink[Token]) -> None:
            stream.close()
            raise ContextLengthExceededError(9, 3)

    model = Closes()
    stream = model.stream_batch(["a", "b"])
    assert list(stream) == []
    assert stream.errors == {}
    assert not model._life.running


async def test_cancelling_a_task_that_waits_for_a_prompt() -> None:
    closed = asyncio.Event()

    async def never() -> AsyncIterator[str]:
        try:
            await asyncio.Event().wait()
            yield ""
        finally:
            closed.set()

    stream = Words().astream_batch(never())
    task = asyncio.create_task(stream.results())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(closed.wait(), 30)


@EITHER_WAITS
async def test_closing_the_model_ends_batches_with_that(kind: type[Waits]) -> None:
    model = kind()
    model.parallel = 2
    stream = model.stream_batch(["a", "b", "c"])
    astream = model.astream_batch(["a", "b", "c"])
    next(stream)
    await anext(astream)
    model.close()
    with pytest.raises(ModelClosedError):
        list(stream)
    with pytest.raises(ModelClosedError):
        _ = [pair async for pair in astream]
    assert list(stream) == []
    await auntil(lambda: model.begun == model.ended)


async def test_closing_the_model_while_prompts_come_ends_batches_with_that() -> None:
    def closing(model: TextModel) -> Iterator[str]:
        yield "a"
        model.close()
        yield "b"

    model = Waits()
    model.parallel = 2
    with pytest.raises(ModelClosedError):
        list(model.stream_batch(closing(model)))
    assert not model._life.running
    model = Waits()
    model.parallel = 2
    with pytest.raises(ModelClosedError):
        _ = [pair async for pair in model.astream_batch(closing(model))]
    assert not model._life.running


def test_a_model_that_is_closed_while_an_operation_starts_ends_the_batch_with_that() -> None:
    class Closes(Words):
        def _start(self, request: Request, sink: Sink[Token]) -> None:
            self.close()
            raise ModelClosedError("closed meanwhile")

    model = Closes()
    with pytest.raises(ModelClosedError, match="closed meanwhile"):
        model.batch_generate(["a", "b"])
    assert not model._life.running


def test_batches_and_streams_run_concurrently() -> None:
    model = Words()
    model.parallel = 2
    results: dict[int, list[BatchResult]] = {}

    def work(number: int) -> None:
        results[number] = model.batch_generate([f"{number} {prompt}" for prompt in range(10)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    texts = [model.generate(f"s {number}").text() for number in range(20)]
    for thread in threads:
        thread.join()
    assert texts == [f"s {number}" for number in range(20)]
    for number, batch in results.items():
        assert [result.text for result in batch] == [f"{number} {prompt}" for prompt in range(10)]
        assert {result.metrics.generated_tokens for result in batch} == {2}
