# SPDX-License-Identifier: Apache-2.0
"""The guarantees of streams, over sync and async engines, in threads and in tasks."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from inference_bridge import (
    GenerateMetrics,
    GenerationError,
    GenerationTimeoutError,
    ModelClosedError,
    Request,
    ServerError,
    TextModel,
    Token,
    ToolCall,
    ToolCallDelta,
)

from ..parts.models.tiny import AsyncWaits, AsyncWords, Tiny, Waits, Words, auntil, until

pytestmark = pytest.mark.usefixtures("no_thread_stays")
EITHER = pytest.mark.parametrize("kind", [Words, AsyncWords])
EITHER_WAITS = pytest.mark.parametrize("kind", [Waits, AsyncWaits])


def _in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[Any]]:
    """A thread that keeps the result of its work: a value or an exception."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


class Scripted(Tiny):
    """Yields the given items, and raises those that are exceptions."""

    def __init__(self, *script: Token | BaseException) -> None:
        super().__init__()
        self.script = script

    def _run(self, request: Request) -> Iterator[Token]:
        for item in self.script:
            if isinstance(item, BaseException):
                raise item
            yield item


class AsyncScripted(Scripted):
    _run = TextModel._run

    async def _arun(self, request: Request) -> AsyncIterator[Token]:
        for item in self.script:
            if isinstance(item, BaseException):
                raise item
            yield item


SCRIPTED = pytest.mark.parametrize("kind", [Scripted, AsyncScripted])


# ---------------------------------------------------------------- reading


@EITHER
def test_iterating_text_and_result(kind: type[Tiny]) -> None:
    model = kind()
    assert [token.text for token in model.generate("one two three")] == ["one", " two", " three"]
    assert model.generate("one two").text() == "one two"
    result = model.generate("one two").result()
    assert result.text == "one two"
    assert result.finish_reason == "stop"
    assert result.metrics.generated_tokens == 2


@EITHER
async def test_async_iterating_text_and_result(kind: type[Tiny]) -> None:
    model = kind()
    assert [token.text async for token in model.agenerate("one two three")] == ["one", " two", " three"]
    assert await model.agenerate("one two").text() == "one two"
    result = await model.achat([{"role": "user", "content": "one two"}]).result()
    assert result.text == "one two"
    assert result.finish_reason == "stop"


@EITHER
def test_a_stream_starts_when_it_is_first_read(kind: type[Tiny]) -> None:
    model = kind()
    stream, unused = model.generate("one two"), model.generate("never")
    assert model.begun == 0
    next(stream)
    assert model.begun == 1
    stream.close()
    unused.close()
    assert model.begun == 1
    assert unused.finish_reason == "cancelled"
    assert list(unused) == []


@EITHER
def test_a_stream_is_used_once(kind: type[Tiny]) -> None:
    model = kind()
    stream = model.generate("one two")
    assert len(list(stream)) == 2
    assert list(stream) == []
    assert stream.text() == "one two"
    assert model.begun == 1


@EITHER
async def test_an_async_stream_is_used_once(kind: type[Tiny]) -> None:
    model = kind()
    stream = model.agenerate("one two")
    assert len([token async for token in stream]) == 2
    assert [token async for token in stream] == []
    assert await stream.text() == "one two"
    assert model.begun == 1


@EITHER
def test_tokens_that_were_read_are_in_the_result(kind: type[Tiny]) -> None:
    stream = kind().generate("one two three")
    next(stream)
    assert stream.text() == "one two three"


@EITHER
def test_finish_reason_is_none_until_the_end(kind: type[Tiny]) -> None:
    stream = kind().generate("one")
    assert stream.finish_reason is None
    next(stream)
    assert stream.finish_reason is None
    assert next(stream, None) is None
    assert stream.finish_reason == "stop"


@EITHER
async def test_max_tokens_is_enforced_if_the_engine_ignores_it(kind: type[Tiny]) -> None:
    model = kind()
    stream = model.generate("one two three", max_tokens=2)
    assert stream.text() == "one two"
    assert stream.finish_reason == "length"
    assert await model.agenerate("one two three", max_tokens=1).text() == "one"
    assert (await model.agenerate("one two three", max_tokens=3).result()).finish_reason == "stop"
    assert model.generate("one two three", max_tokens=-1).text() == "one two three"
    until(lambda: model.begun == model.ended)


@SCRIPTED
async def test_kinds_of_tokens_and_tool_calls(kind: type[Scripted]) -> None:
    tokens = (
        Token("let me see", kind="reasoning"),
        Token("I call. "),
        Token("", kind="tool_call", tool_call=ToolCallDelta(0, "c1", "add", '{"a":')),
        Token("", kind="tool_call", tool_call=ToolCallDelta(0, arguments=" 1}")),
    )
    stream = kind(*tokens).generate("x")
    assert [next(stream) for _ in range(3)] == list(tokens[:3])
    assert not stream.tool_calls
    assert stream.text() == "I call. "
    calls = stream.tool_calls
    assert calls == (ToolCall("c1", "add", {"a": 1}),)
    assert stream.finish_reason == "tool_calls"
    astream = kind(*tokens).agenerate("x")
    result = await astream.result()
    assert result.reasoning == "let me see"
    assert result.tool_calls == astream.tool_calls == calls
    assert astream.finish_reason == "tool_calls"


@EITHER
def test_a_blocking_call_inside_an_event_loop(kind: type[Tiny]) -> None:
    async def main() -> str:
        return kind().generate("as in a notebook").text()

    assert asyncio.run(main()) == "as in a notebook"


@EITHER
def test_many_event_loops_at_once(kind: type[Tiny]) -> None:
    model = kind()

    async def several(number: int) -> list[str]:
        return await asyncio.gather(*(model.agenerate(f"{number} {task} end").text() for task in range(5)))

    threads = [_in_thread(lambda number=number: asyncio.run(several(number))) for number in range(6)]  # type: ignore[misc]
    for number, (thread, outcome) in enumerate(threads):
        thread.join()
        assert outcome == [[f"{number} {task} end" for task in range(5)]]


@EITHER
def test_threads_that_share_a_stream_get_each_token_once(kind: type[Tiny]) -> None:
    stream = kind().generate(" ".join(map(str, range(200))))
    readers = [_in_thread(lambda: [token.text for token in stream]) for _ in range(4)]
    for thread, _ in readers:
        thread.join()
    read = [text for _, (texts,) in readers for text in texts]
    assert sorted(map(int, read)) == list(range(200))


# ---------------------------------------------------------------- ending early


@EITHER
def test_closing_midway_frees_the_resources_of_the_operation(kind: type[Tiny]) -> None:
    model = kind()
    stream = model.generate("one two three")
    next(stream)
    stream.close()
    stream.close()
    assert stream.finish_reason == "cancelled"
    assert stream.metrics.generated_tokens == 1
    assert list(stream) == []
    until(lambda: model.ended == 1)


@EITHER
async def test_closing_an_async_stream_midway(kind: type[Tiny]) -> None:
    model = kind()
    stream = model.agenerate("one two three")
    await anext(stream)
    stream.close()
    assert stream.finish_reason == "cancelled"
    assert [token async for token in stream] == []
    await auntil(lambda: model.ended == 1)


async def test_aclose_waits_until_all_is_freed() -> None:
    model = AsyncWords()
    stream = model.agenerate("one two three")
    await anext(stream)
    await stream.aclose()
    await stream.aclose()
    assert model.ended == 1
    assert stream.finish_reason == "cancelled"


@EITHER
async def test_an_async_stream_may_be_closed_from_another_thread(kind: type[Tiny]) -> None:
    model = kind()
    stream = model.agenerate("one two three")
    await anext(stream)
    await asyncio.to_thread(stream.close)
    assert stream.finish_reason == "cancelled"
    assert await anext(stream, None) is None
    await auntil(lambda: model.ended == 1)


@EITHER
async def test_leaving_a_with_block_ends_the_stream(kind: type[Tiny]) -> None:
    model = kind()
    with model.generate("one two three") as stream:
        next(stream)
    assert stream.finish_reason == "cancelled"
    async with model.agenerate("one two three") as astream:
        await anext(astream)
    assert astream.finish_reason == "cancelled"
    with pytest.raises(ZeroDivisionError), model.generate("one two three") as stream:
        1 / len(next(stream).top_logprobs)
    assert stream.finish_reason == "cancelled"
    await auntil(lambda: model.ended == 3)


@EITHER
def test_closing_a_finished_stream_does_not_change_it(kind: type[Tiny]) -> None:
    with kind().generate("one") as stream:
        stream.text()
    assert stream.finish_reason == "stop"


@EITHER
async def test_closing_a_finished_async_stream_does_not_change_it(kind: type[Tiny]) -> None:
    for closes_at_once in (True, False):
        async with kind().agenerate("one") as stream:
            await stream.text()
            if closes_at_once:
                stream.close()
        assert stream.finish_reason == "stop"


@EITHER
def test_dropping_a_stream_ends_it(kind: type[Tiny]) -> None:
    model = kind()
    stream = model.generate("one two three")
    next(stream)
    del stream
    gc.collect()
    until(lambda: model.ended == 1)
    assert not model._life.running


@EITHER
async def test_dropping_an_async_stream_ends_it(kind: type[Tiny]) -> None:
    model = kind()
    stream = model.agenerate("one two three")
    await anext(stream)
    del stream
    gc.collect()
    await auntil(lambda: model.ended == 1)
    assert not model._life.running


LEFT_OPEN = """
import sys
from tests.parts.models.tiny import Words

class Closing(Words):
    def _run(self, request):
        try:
            yield from super()._run(request)
        except GeneratorExit:
            print("closed while the interpreter goes" if sys.is_finalizing() else "closed")
            raise

model = Closing()
held, raises = model.generate("one two"), model.generate("three four")
next(held), next(raises)
in_a_circle = [model.generate("five six")]
in_a_circle.append(in_a_circle)
next(in_a_circle[0])
del in_a_circle
done = model.generate("seven")
done.text()
unread = model.generate("eight")
"""


def test_open_streams_end_before_the_interpreter_exits() -> None:
    """The modules that a backend needs for closing still exist."""
    done = subprocess.run([sys.executable, "-X", "dev", "-c", LEFT_OPEN], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("closed\n" * 3, "")


def test_leaving_a_for_loop_ends_a_stream_without_other_references() -> None:
    model = Words()
    for _ in model.generate("one two three"):
        break
    gc.collect()
    assert model.ended == 1


@EITHER_WAITS
def test_closing_from_another_thread_wakes_a_reader(kind: type[Waits]) -> None:
    model = kind()
    stream = model.generate("one two")
    thread, outcome = _in_thread(stream.text)
    until(lambda: len(stream._request.result().tokens) == 2)
    stream.close()
    thread.join()
    assert outcome == ["one two"]
    assert stream.finish_reason == "cancelled"
    model.finished.wait()


@EITHER_WAITS
@pytest.mark.parametrize("close", ["close", "aclose", "from a thread"])
async def test_closing_an_async_stream_wakes_its_reader(kind: type[Waits], close: str) -> None:
    model = kind()
    stream = model.agenerate("one two")
    task = asyncio.create_task(stream.text())
    await auntil(lambda: len(stream._request.result().tokens) == 2)
    if close == "close":
        stream.close()
    elif close == "aclose":
        await stream.aclose()
    else:
        await asyncio.to_thread(stream.close)
    assert await task == "one two"
    assert stream.finish_reason == "cancelled"
    await asyncio.to_thread(model.finished.wait)


@EITHER_WAITS
async def test_cancelling_the_task_frees_the_operation(kind: type[Waits]) -> None:
    model = kind()
    stream = model.agenerate("one two")
    task = asyncio.create_task(stream.text())
    await asyncio.to_thread(model.waiting.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stream.finish_reason == "cancelled"
    await asyncio.to_thread(model.finished.wait)
    assert not model._life.running
    assert await anext(stream, None) is None


def test_an_exception_of_the_backend_after_cancellation_is_not_an_error() -> None:
    class Socket(Waits):
        def _run(self, request: Request) -> Iterator[Token]:
            yield from super()._run(request)
            raise OSError("bad file descriptor")  # as a read from a connection that on_cancel closed

    model = Socket()
    stream = model.generate("one")
    thread, outcome = _in_thread(stream.text)
    model.waiting.wait()
    stream.close()
    thread.join()
    assert outcome == ["one"]
    assert stream.finish_reason == "cancelled"


@EITHER_WAITS
async def test_a_token_that_comes_too_late_is_not_seen(kind: type[Waits]) -> None:
    class Late(Waits):
        def _run(self, request: Request) -> Iterator[Token]:
            yield from super()._run(request)
            yield Token(" late")

    class AsyncLate(AsyncWaits):
        async def _arun(self, request: Request) -> AsyncIterator[Token]:
            try:
                async for token in super()._arun(request):
                    yield token
            except asyncio.CancelledError:
                yield Token(" late")

    late = Late() if kind is Waits else AsyncLate()
    stream = late.generate("one")
    thread, outcome = _in_thread(stream.text)
    until(lambda: len(stream._request.result().tokens) == 1)
    stream.close()
    thread.join()
    assert outcome == ["one"]
    astream = late.agenerate("one")
    task = asyncio.create_task(astream.text())
    await auntil(lambda: len(astream._request.result().tokens) == 1)
    astream.close()
    assert await task == "one"
    assert astream.finish_reason == "cancelled"


async def test_a_cancellation_that_comes_just_before_the_wait_is_not_missed() -> None:
    class Hasty(AsyncWaits):
        def _arun(self, request: Request) -> AsyncIterator[Token]:
            request.cancel()
            return super()._arun(request)

    stream = Hasty().agenerate("")
    assert await asyncio.wait_for(stream.text(), 30) == ""
    assert stream.finish_reason == "cancelled"


async def test_the_same_in_an_async_stream() -> None:
    class Socket(Tiny):
        async def _arun(self, request: Request) -> AsyncIterator[Token]:
            cancelled = asyncio.Event()
            loop = asyncio.get_running_loop()
            request.on_cancel(lambda: loop.call_soon_threadsafe(cancelled.set))  # type: ignore[arg-type]
            yield Token("one")
            await cancelled.wait()
            raise OSError("bad file descriptor")

    stream = Socket().agenerate("x")
    task = asyncio.create_task(stream.text())
    await auntil(lambda: len(stream._request.result().tokens) == 1)
    stream.close()
    assert await task == "one"
    assert stream.finish_reason == "cancelled"


async def test_two_tasks_reading_one_async_stream_are_an_error() -> None:
    stream = Waits().agenerate("one")
    await anext(stream)
    first = asyncio.create_task(stream.__anext__())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="another task is waiting"):
        await anext(stream)
    stream.close()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)  # though the first has not left it yet
    with pytest.raises(StopAsyncIteration):
        await first


# ---------------------------------------------------------------- errors


@SCRIPTED
async def test_a_failure_is_typed_and_has_the_partial_result(kind: type[Scripted]) -> None:
    cause = RuntimeError("out of cells")
    for read in ("sync", "async"):
        model = kind(Token("one"), Token(" two"), cause)
        stream: Any = model.generate("x") if read == "sync" else model.agenerate("x")
        with pytest.raises(GenerationError, match="RuntimeError: out of cells") as error:
            stream.text() if read == "sync" else await stream.text()
        assert error.value.__cause__ is cause
        assert error.value.partial is not None
        assert error.value.partial.text == "one two"
        assert error.value.partial.finish_reason is None
        assert stream.finish_reason is None
        assert stream.metrics.generated_tokens == 2
        assert not model._life.running
        assert (next(stream, None) if read == "sync" else await anext(stream, None)) is None, "told once"


@SCRIPTED
async def test_an_error_of_this_library_is_raised_unchanged(kind: type[Scripted]) -> None:
    for error in (ServerError("refused", status=503), ModelClosedError("gone")):
        with pytest.raises(type(error)) as raised:
            kind(Token("one"), error).generate("x").text()
        assert raised.value is error
        with pytest.raises(type(error)) as raised:
            await kind(Token("one"), error).agenerate("x").text()
        assert raised.value is error
    server_error = ServerError("refused")
    with pytest.raises(ServerError):
        kind(Token("one"), server_error).generate("x").text()
    assert server_error.partial is not None
    assert server_error.partial.text == "one"


def test_a_failure_before_the_first_token() -> None:
    class Eager(Tiny):
        def _run(self, request: Request) -> Iterator[Token]:
            raise ValueError("no generator at all")

    stream = Eager().generate("x")
    with pytest.raises(GenerationError, match="no generator at all") as error:
        next(stream)
    assert error.value.partial is not None
    assert error.value.partial.tokens == ()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_goes_through_and_frees_the_operation(stop: type[BaseException]) -> None:
    model = Scripted(Token("one"), stop())
    stream = model.generate("x")
    with pytest.raises(stop):
        stream.text()
    assert stream.finish_reason == "cancelled"
    assert not model._life.running
    assert list(stream) == []


def test_an_interrupt_is_not_mistaken_for_the_closing_that_came_with_it() -> None:
    model = Scripted(Token("one"))

    class Interrupted(Scripted):
        def _run(self, request: Request) -> Iterator[Token]:
            model.close()
            request.cancel(ModelClosedError("closed"))
            raise KeyboardInterrupt
            yield

    with pytest.raises(KeyboardInterrupt):
        next(Interrupted().generate("x"))


@EITHER_WAITS
async def test_timeout(kind: type[Waits]) -> None:
    model = kind()
    stream = model.generate("one two", timeout=0.3)
    with pytest.raises(GenerationTimeoutError, match=r"timeout=0\.3 s \(2 tokens") as error:
        stream.text()
    assert error.value.partial is not None
    assert error.value.partial.text == "one two"
    assert isinstance(error.value, TimeoutError)
    assert stream.finish_reason is None
    model.finished.wait()


@EITHER_WAITS
async def test_timeout_of_an_async_stream(kind: type[Waits]) -> None:
    model = kind()
    with pytest.raises(GenerationTimeoutError) as error:
        await model.agenerate("one two", timeout=0.3).text()
    assert error.value.partial is not None
    assert error.value.partial.text == "one two"
    await asyncio.to_thread(model.finished.wait)


def test_time_that_is_over_is_noticed_at_the_next_token() -> None:
    class Idle(Tiny):
        """Never looks at the clock."""

        def _run(self, request: Request) -> Iterator[Token]:
            while True:
                time.sleep(0.001)
                yield Token("x")

    with pytest.raises(GenerationTimeoutError) as error:
        Idle().generate("x", timeout=0.02).text()
    assert error.value.partial is not None
    assert error.value.partial.text


def test_a_timeout_error_of_the_backend_before_the_deadline_is_a_generation_error() -> None:
    with pytest.raises(GenerationError, match="TimeoutError: connect") as error:
        Scripted(TimeoutError("connect")).generate("x", timeout=1e300).text()
    assert not isinstance(error.value, GenerationTimeoutError)


@SCRIPTED
async def test_the_same_where_a_coroutine_reads(kind: type[Scripted]) -> None:
    with pytest.raises(GenerationError, match="TimeoutError: connect") as error:
        await kind(TimeoutError("connect")).agenerate("x", timeout=1e6).text()
    assert not isinstance(error.value, GenerationTimeoutError)


def test_a_task_cancelled_by_the_engine_is_a_generation_error() -> None:
    class Cancels(Tiny):
        async def _arun(self, request: Request) -> AsyncIterator[Token]:
            yield Token("one")
            raise asyncio.CancelledError

    with pytest.raises(GenerationError, match="own task was cancelled"):
        Cancels().generate("x").text()


# ---------------------------------------------------------------- metrics


@EITHER
async def test_metrics_are_filled_in(kind: type[Tiny]) -> None:
    model = kind()
    assert model.metrics == GenerateMetrics()
    stream = model.generate("one two three")
    stream.text()
    metrics = stream.metrics
    assert metrics.generated_tokens == 3
    assert 0 < metrics.time_to_first_token <= metrics.total_seconds
    assert metrics.prefill_seconds + metrics.decode_seconds == pytest.approx(metrics.total_seconds)
    assert model.metrics is metrics
    astream = model.agenerate("one")
    await astream.text()
    assert astream.metrics.generated_tokens == 1
    assert model.metrics is astream.metrics
    assert stream.metrics is metrics


def test_metrics_of_the_backend_are_kept() -> None:
    class Measures(Tiny):
        def _run(self, request: Request) -> Iterator[Token]:
            request.measure(prompt_tokens=7, cached_tokens=3)
            yield Token("a")
            request.finish_reason = "length"
            request.measure(generated_tokens=2, prefill_seconds=1.5, decode_seconds=0.5)

    stream = Measures().generate("x")
    stream.text()
    assert stream.finish_reason == "length"
    metrics = stream.metrics
    assert (metrics.prompt_tokens, metrics.cached_tokens, metrics.generated_tokens) == (7, 3, 2)
    assert (metrics.prefill_seconds, metrics.decode_seconds) == (1.5, 0.5)
    assert metrics.total_seconds > 0


@EITHER
def test_concurrent_operations_are_independent(kind: type[Tiny]) -> None:
    model = kind()
    streams = [model.generate("w " * (number + 1)) for number in range(8)]
    started = threading.Barrier(8)

    def read(number: int) -> None:
        started.wait()
        streams[number].text()

    threads = [_in_thread(lambda number=number: read(number)) for number in range(8)]  # type: ignore[misc]
    for thread, _ in threads:
        thread.join()
    for number, stream in enumerate(streams):
        assert stream.metrics.generated_tokens == number + 1
        assert stream.text() == " ".join("w" * (number + 1))


def test_interleaved_streams_of_one_thread_are_independent() -> None:
    model = Words()
    first, second = model.generate("a b c"), model.generate("d e")
    read = [next(first), next(second), next(first), next(second)]
    assert "".join(token.text for token in read) == "ad b e"
    assert first.text() == "a b c"
    assert second.text() == "d e"
    assert (first.metrics.generated_tokens, second.metrics.generated_tokens) == (3, 2)


# ---------------------------------------------------------------- the model is closed


@EITHER
async def test_streams_of_a_closed_model_end_with_that(kind: type[Tiny]) -> None:
    model = kind()
    running, waiting = model.generate("one two three"), model.generate("never")
    arunning, awaiting = model.agenerate("one two three"), model.agenerate("never")
    done = model.generate("one")
    done.text()
    next(running)
    await anext(arunning)
    model.close()
    for stream in (running, waiting):
        with pytest.raises(ModelClosedError):
            next(stream)
        assert list(stream) == [], "told once"
        assert stream.finish_reason is None
    for astream in (arunning, awaiting):
        with pytest.raises(ModelClosedError):
            await anext(astream)
    assert done.finish_reason == "stop"
    assert running.result().text == "one"
    await auntil(lambda: model.begun == model.ended)


@EITHER_WAITS
def test_closing_the_model_wakes_whoever_waits(kind: type[Waits]) -> None:
    model = kind()
    thread, outcome = _in_thread(model.generate("one").text)
    model.waiting.wait()
    model.close()
    thread.join()
    assert isinstance(outcome[0], ModelClosedError)
    model.finished.wait()


@EITHER_WAITS
async def test_closing_the_model_wakes_tasks_that_wait(kind: type[Waits]) -> None:
    model = kind()
    task = asyncio.create_task(model.agenerate("one").text())
    await asyncio.to_thread(model.waiting.wait)
    await model.aclose()
    with pytest.raises(ModelClosedError):
        await task
