# SPDX-License-Identifier: Apache-2.0
"""Run many prompts on one model, as many at once as the model has slots.

The next prompt is read in the consumer's thread, when an earlier prompt has ended. So the memory that a batch needs
does not grow with the number of prompts, and a slow consumer slows down the reading of prompts.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from . import _telemetry
from ._concurrency.background import off_loop
from ._concurrency.cooperative import LoopYield
from ._concurrency.loops import check_asyncio
from ._concurrency.mailbox import AsyncMailbox, Mailbox, Sink
from .errors import GenerationError, ModelClosedError
from .request import Request
from .types import BatchResult, Token

if TYPE_CHECKING:
    import asyncio
    from typing import Self

    Event = tuple[int, "Token | _End"]

Prompt = TypeVar("Prompt")
"""What a request is made from: a text, a conversation, or the form into which an engine has converted it."""


class Starter(Protocol):
    """The methods of a model that a batch calls."""

    @property
    def _batch_width(self) -> int: ...
    def _begin(self, request: Request) -> None: ...
    def _end(self, request: Request) -> None: ...
    def _check_open(self) -> None: ...
    def _verify(self, request: Request) -> None: ...
    @property
    def _name(self) -> str: ...
    def _start(self, request: Request, sink: Sink[Token]) -> None: ...
    def _astart(self, request: Request, sink: Sink[Token]) -> None: ...


class _End:
    __slots__ = ("error",)

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


_WAKE: Event = (-1, _End(None))
"""An event that belongs to no prompt: it makes the consumer check what has changed."""


class _PromptSink:
    """Puts the tokens of one prompt, with the prompt's index, into the mailbox of the batch."""

    __slots__ = ("_box", "_index")

    def __init__(self, box: Sink[Event], index: int) -> None:
        self._box = box
        self._index = index

    def put(self, item: Token) -> None:
        self._box.put((self._index, item))

    def close(self, error: BaseException | None = None) -> None:
        self._box.put((self._index, _End(error)))


class _Batch(Generic[Prompt]):
    """The state that the sync and async batches share: which prompts are running, and the results of finished ones."""

    def __init__(self, starter: Starter, make_request: Callable[[Prompt], Request]) -> None:
        self.errors: dict[int, Exception] = {}
        """The errors of the prompts that failed, by the index of the prompt."""
        self._prompts: Iterator[Prompt] | None = None
        self._box: Sink[Event] | None = None
        self._starter = starter
        self._make_request = make_request
        self._active: dict[int, Request] = {}
        self._results: dict[int, BatchResult] | None = None
        self._next_index = 0
        self._closed = False
        self._caller = _telemetry.caller()

    def _admit(self, prompt: Prompt, box: Sink[Event]) -> None:
        index, self._next_index = self._next_index, self._next_index + 1
        try:
            request = self._make_request(prompt)
        except ModelClosedError:
            raise
        except Exception as error:
            self._record(index, BatchResult(error=error))
            return
        request.caller = self._caller
        request.begin()
        self._starter._begin(request)
        self._active[index] = request
        try:
            self._launch(request, _PromptSink(box, index))
        except ModelClosedError:
            raise
        except Exception as error:
            self._finish(index, request, error)

    def _launch(self, request: Request, sink: Sink[Token]) -> None:
        self._starter._start(request, sink)

    def _fill(self, box: Sink[Event]) -> None:
        while (prompts := self._prompts) is not None and len(self._active) < self._starter._batch_width:
            try:
                prompt = next(prompts)
            except StopIteration:
                self._prompts = None
            else:
                self._admit(prompt, box)

    def _take(self, event: Event) -> tuple[int, Token] | None:
        """Process an event. Return its token if the consumer should see it."""
        index, item = event
        request = self._active.get(index)
        if request is None:
            return None  # the prompt was cancelled before
        if isinstance(item, _End):
            self._finish(index, request, request.error or item.error)
            return None
        try:
            if request.accept(item):
                return index, item
            self._finish(index, request, None)
        except GenerationError as error:
            self._finish(index, request, error)
        return None

    def _finish(self, index: int, request: Request, error: BaseException | None) -> None:
        if self._active.pop(index, None) is None:
            return  # close() did it, in another thread
        error = request.failure(error) if error is not None else None
        request.end(error)
        request.cancel()  # frees the slot, if the operation still holds it
        self._starter._end(request)
        if error is not None and (isinstance(error, ModelClosedError) or not isinstance(error, Exception)):
            raise error
        so_far = request.result()
        if isinstance(error, GenerationError) and error.partial is None:
            error.partial = so_far
        self._record(
            index, BatchResult(so_far.tokens, so_far.finish_reason, so_far.metrics, error, shortened=so_far.shortened)
        )

    def _record(self, index: int, result: BatchResult) -> None:
        if result.error is not None:
            self.errors[index] = result.error
        if self._results is not None:
            self._results[index] = result

    def _keep(self) -> dict[int, BatchResult]:
        if self._next_index:
            raise RuntimeError("results() was called after reading began, but the tokens that were read are not kept")
        self._results = {}
        return self._results

    def close(self) -> None:
        """Cancel the running prompts, and read no more. Idempotent. May be called from any thread."""
        if self._closed:
            return
        self._closed = True
        self._prompts = None
        self._drop_active()
        if self._box is not None:
            self._box.put(_WAKE)  # a consumer may be waiting in another thread

    def _drop_active(self) -> None:
        for index, request in list(self._active.items()):
            request.cancel()
            self._finish(index, request, None)

    def __del__(self) -> None:
        for request in self._active.values():
            request.dropped = True
        if self._active:
            self.close()


class BatchStream(_Batch[Prompt]):
    """An iterator over the tokens of all running prompts, as pairs (index of the prompt, token)."""

    def __init__(self, starter: Starter, make_request: Callable[[Prompt], Request], prompts: Iterable[Prompt]) -> None:
        super().__init__(starter, make_request)
        self._events: Mailbox[Event] = Mailbox()
        self._box = self._events
        self._prompts = iter(prompts)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[int, Token]:
        try:
            while not self._closed:
                self._starter._check_open()
                self._fill(self._events)
                if not self._active:
                    break
                token = self._take(next(self._events))
                if token is not None:
                    return token
        except BaseException:
            self.close()
            raise
        self._drop_active()  # prompts that were admitted while another thread closed the batch
        raise StopIteration

    def results(self) -> list[BatchResult]:
        """Run the whole batch. Call it before anything is read from the batch.

        Returns:
            One result for each prompt, in the order of the prompts.

        Raises:
            RuntimeError: Part of the batch was read already.
        """
        kept = self._keep()
        for _ in self:
            pass
        return _in_order(kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncBatchStream(_Batch[Prompt]):
    """`BatchStream` for `async for`. The prompts may also come from an asynchronous iterable."""

    def __init__(
        self,
        starter: Starter,
        make_request: Callable[[Prompt], Request],
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        template: Request | None = None,
    ) -> None:
        """`template`: a request without a prompt. It is verified before the first prompt is read."""
        super().__init__(starter, make_request)
        self._template = template
        self._events: AsyncMailbox[Event] | None = None
        self._async_prompts: AsyncIterator[Prompt] | None = None
        self._next_prompt: asyncio.Future[Prompt | _NoMore] | None = None
        self._loop_yield = LoopYield()
        self._reading: set[asyncio.Future[None]] = set()
        if isinstance(prompts, AsyncIterable):
            self._async_prompts = aiter(prompts)
        else:
            self._prompts = iter(prompts)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, Token]:
        try:
            if self._events is None:
                check_asyncio(self._starter._name)
                self._box = self._events = AsyncMailbox()
                if self._template is not None:
                    template = self._template
                    await off_loop(lambda: self._starter._verify(template))
            while not self._closed:
                self._starter._check_open()
                self._fill(self._events)
                if not self._active and self._next_prompt is None:
                    break
                await self._loop_yield.if_due()
                token = self._take(await anext(self._events))
                if token is not None:
                    return token
        except BaseException:
            self.close()
            raise
        self._drop_active()
        raise StopAsyncIteration

    async def results(self) -> list[BatchResult]:
        """Run the whole batch. Returns and raises as `BatchStream.results`."""
        kept = self._keep()
        async for _ in self:
            pass
        return _in_order(kept)

    def _launch(self, request: Request, sink: Sink[Token]) -> None:
        if request.to_come is None:
            self._starter._astart(request, sink)
            return
        import asyncio

        reading = asyncio.ensure_future(self._read(request, request.to_come, sink))
        self._reading.add(reading)  # the event loop holds only a weak reference
        reading.add_done_callback(self._reading.discard)

    async def _read(self, request: Request, to_come: Callable[[], Request], sink: Sink[Token]) -> None:
        """Read the prompt in a thread, then start the request."""
        try:
            request.verifying = True
            request.become(await off_loop(to_come))
            request.verifying = False
            if not request.cancelled:
                self._starter._astart(request, sink)
        except Exception as error:
            sink.close(error)

    def _fill(self, box: Sink[Event]) -> None:
        """Admit prompts. Waiting for the next prompt of an asynchronous iterable does not delay any token."""
        super()._fill(box)
        while self._async_prompts is not None and len(self._active) < self._starter._batch_width:
            if self._next_prompt is None:
                import asyncio

                self._next_prompt = asyncio.ensure_future(_next(self._async_prompts))
                self._next_prompt.add_done_callback(lambda _: box.put(_WAKE))
            if not self._next_prompt.done():
                return
            future, self._next_prompt = self._next_prompt, None
            prompt = future.result()
            if isinstance(prompt, _NoMore):
                self._async_prompts = None
            else:
                self._admit(prompt, box)

    def close(self) -> None:
        super().close()
        self._async_prompts = None
        future, self._next_prompt = self._next_prompt, None
        if future is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                future.get_loop().call_soon_threadsafe(future.cancel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _NoMore:
    pass


async def _next(prompts: AsyncIterator[Prompt]) -> Prompt | _NoMore:
    return await anext(prompts, _NoMore())


def _in_order(results: dict[int, BatchResult]) -> list[BatchResult]:
    return [result for _, result in sorted(results.items())]
