# SPDX-License-Identifier: Apache-2.0
"""A common interface to the sync and async methods of a model: each test is written once and runs with both."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..model import TextModel
from ..streams import AsyncTokenStream, TokenStream
from ..types import GenerateResult, Token

Ask = Callable[[Any], Any]
"""A function that takes a caller and returns a new stream."""


class Sync:
    """Calls the sync methods of a model."""

    mode = "sync"

    def generate(self, model: TextModel, prompt: str, **options: Any) -> TokenStream | Stepped:
        return model.generate(prompt, **options)

    def chat(self, model: TextModel, messages: Any, **options: Any) -> TokenStream | Stepped:
        return model.chat(messages, **options)

    def stream_batch(self, model: TextModel, prompts: Any, **options: Any) -> Any:
        return model.stream_batch(prompts, **options)

    def call(self, model: Any, name: str, *args: Any, **options: Any) -> Any:
        """Call the method `name` (`classify`, `batch_generate`, `embed`, `close`, …) and return its result."""
        return getattr(model, name)(*args, **options)

    def together(self, asks: Sequence[Ask]) -> list[GenerateResult | Exception]:
        """Run several streams at once, each in a thread. Return their results, or errors, in the order of `asks`."""

        def one(ask: Ask) -> GenerateResult | Exception:
            try:
                stream = ask(self)
                result: GenerateResult = stream.result()
                assert (stream.metrics, stream.finish_reason) == (result.metrics, result.finish_reason)
                return result
            except Exception as error:
                return error

        with ThreadPoolExecutor(max(len(asks), 1)) as pool:
            return list(pool.map(one, asks))

    def again(self) -> Sync:
        """Return a caller of the same mode for another thread."""
        return self

    def end(self) -> None:
        pass


class Async(Sync):
    """Calls the async methods of a model, in an event loop of its own. Must be used by one thread."""

    mode = "async"

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._runner.get_loop().set_exception_handler(_note)
        self.tasks: set[asyncio.Task[None]] = set()

    def generate(self, model: TextModel, prompt: str, **options: Any) -> Stepped:
        return Stepped(self, model.agenerate(prompt, **options))

    def chat(self, model: TextModel, messages: Any, **options: Any) -> Stepped:
        return Stepped(self, model.achat(messages, **options))

    def stream_batch(self, model: TextModel, prompts: Any, **options: Any) -> Any:
        return Stepped(self, model.astream_batch(prompts, **options))

    def call(self, model: Any, name: str, *args: Any, **options: Any) -> Any:
        async def call() -> Any:
            return await getattr(model, f"a{name}")(*args, **options)

        return self.run(call())

    def together(self, asks: Sequence[Ask]) -> list[GenerateResult | Exception]:
        """Run several streams at once, each in a task of this loop. Return their results, or errors."""

        async def one(ask: Ask) -> GenerateResult:
            stream = ask(self).stream
            result: GenerateResult = await stream.result()
            assert (stream.metrics, stream.finish_reason) == (result.metrics, result.finish_reason)
            return result

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*map(one, asks), return_exceptions=True)

        results: list[GenerateResult | Exception] = self.run(all_of_them())
        return results

    def run(self, work: Any) -> Any:
        return self._runner.run(work)

    def again(self) -> Async:
        return Async()

    def end(self) -> None:
        self._runner.close()


class Stepped:
    """An async stream with the interface of a sync one, so that a test can read it step by step.

    One task awaits everything of one stream, as in a program, because a resource that a backend opens in its async
    generator may belong to the task that opened it.
    """

    def __init__(self, caller: Async, stream: Any) -> None:
        self.stream = stream
        self._caller = caller
        self._work: asyncio.Queue[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _await(self, make: Callable[[], Awaitable[Any]]) -> Any:
        return self._caller.run(self._ask(make))

    async def _ask(self, make: Callable[[], Awaitable[Any]]) -> Any:
        if self._work is None:
            self._work = asyncio.Queue()
            self._caller.tasks.add(asyncio.create_task(_serve(self._work)))  # the loop keeps only a weak reference
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._work.put_nowait((make, answer))
        return await answer

    def __iter__(self) -> Iterator[Any]:
        while (item := self._await(lambda: anext(self.stream, _END))) is not _END:
            yield item

    def __next__(self) -> Any:
        item = self._await(lambda: anext(self.stream, _END))
        if item is _END:
            raise StopIteration
        return item

    def text(self) -> str:
        text: str = self._await(self.stream.text)
        return text

    def result(self) -> GenerateResult:
        result: GenerateResult = self._await(self.stream.result)
        return result

    def close(self) -> None:
        if isinstance(self.stream, AsyncTokenStream):
            self._await(self.stream.aclose)
        else:
            self.stream.close()

    def __enter__(self) -> Stepped:
        return self

    def __exit__(self, *error: Any) -> None:
        self._await(lambda: self.stream.__aexit__(*error))


_END: Any = object()


async def _serve(work: asyncio.Queue[Any]) -> None:
    while True:
        make, answer = await work.get()
        try:
            answer.set_result(await make())
        except asyncio.CancelledError:
            answer.cancel()
            raise
        except Exception as error:
            answer.set_exception(error)
        del make, answer  # do not keep a reference to a stream that the test has dropped


def _note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error of a callback without its traceback: the frames would keep streams alive."""
    logging.getLogger("asyncio").error("%s: %r", context["message"], context.get("exception"))


class Reader:
    """Reads a stream to its end in a thread.

    Attributes:
        read: The tokens received so far.
        error: The exception that ended the stream, if any.
    """

    def __init__(self, caller: Sync, ask: Ask) -> None:
        self.read: list[Token] = []
        self.error: BaseException | None = None
        self.result: GenerateResult | None = None
        self.stream: Any = None
        self.some = threading.Event()
        self.made = threading.Event()
        self._caller = caller
        self._ask = ask
        self._thread = threading.Thread(target=self._run, name="contract-reader", daemon=True)
        self._thread.start()
        self.made.wait()

    def _run(self) -> None:
        caller = self._caller.again()
        try:
            self.stream = self._ask(caller)
            self.made.set()
            for token in self.stream:
                self.read.append(token)
                self.some.set()
            self.result = self.stream.result()
        except BaseException as error:
            self.error = error
        finally:
            self.made.set()
            self.some.set()
            caller.end()

    def close(self) -> None:
        """Close the stream from the calling thread, while another thread reads it."""
        stream = self.stream
        (stream.stream if isinstance(stream, Stepped) else stream).close()

    def ended(self, seconds: float) -> bool:
        """Wait up to `seconds` for the thread. Return whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()
