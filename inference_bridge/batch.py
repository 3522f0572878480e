# SPDX-License-Identifier: Apache-2.0
"""Many prompts through one model: as many in flight as it takes at once, the rest not yet read.

Prompts are pulled in the consumer's thread, and only when an earlier one has ended, so
memory stays flat however many there are, and a slow consumer slows the intake.
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
"""What a request is made of: text, or what an engine has already made of it."""


class Starter(Protocol):
    """What a batch needs of its model."""

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
"""Of no prompt: look what has changed."""


class _Share:
    """One prompt's way into the batch's mailbox."""

    __slots__ = ("_box", "_index")

    def __init__(self, box: Sink[Event], index: int) -> None:
        self._box = box
        self._index = index

    def put(self, item: Token) -> None:
        self._box.put((self._index, item))

    def close(self, error: BaseException | None = None) -> None:
        self._box.put((self._index, _End(error)))


class _Batch(Generic[Prompt]):
    """The state that the sync and async batches share: which prompts are in flight, and the results of the others."""

    def __init__(self, starter: Starter, make_request: Callable[[Prompt], Request]) -> None:
        self.errors: dict[int, Exception] = {}
        """The prompts that failed, by their index."""
        self._prompts: Iterator[Prompt] | None = None
        self._box: Sink[Event] | None = None
        self._starter = starter
        self._make_request = make_request
        self._active: dict[int, Request] = {}
        self._kept: dict[int, BatchResult] | None = None
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
            self._conclude(index, BatchResult(error=error))
            return
        request.caller = self._caller
        request.begin()
        self._starter._begin(request)
        self._active[index] = request
        try:
            self._launch(request, _Share(box, index))
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
        """Account for what came in; a token that the consumer should see is returned."""
        index, item = event
        request = self._active.get(index)
        if request is None:
            return None  # what a cancelled operation still sent
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
            return  # close() was first, in another thread
        error = request.failure(error) if error is not None else None
        request.end(error)
        request.cancel()  # frees what the operation may still hold
        self._starter._end(request)
        if error is not None and (isinstance(error, ModelClosedError) or not isinstance(error, Exception)):
            raise error
        so_far = request.result()
        if isinstance(error, GenerationError) and error.partial is None:
            error.partial = so_far
        self._conclude(
            index, BatchResult(so_far.tokens, so_far.finish_reason, so_far.metrics, error, shortened=so_far.shortened)
        )

    def _conclude(self, index: int, result: BatchResult) -> None:
        if result.error is not None:
            self.errors[index] = result.error
        if self._kept is not None:
            self._kept[index] = result

    def _keep(self) -> dict[int, BatchResult]:
        if self._next_index:
            raise RuntimeError("results() is for a batch of which nothing was read: what was, is not kept")
        self._kept = {}
        return self._kept

    def close(self) -> None:
        """End every prompt in flight, and take no more. Idempotent, from any thread."""
        if self._closed:
            return
        self._closed = True
        self._prompts = None
        self._drop_active()
        if self._box is not None:
            self._box.put(_WAKE)  # a consumer that waits in another thread

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
    """An iterator over (index of the prompt, its next Token), from all prompts in flight."""

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
        self._drop_active()  # admitted while another thread closed the batch
        raise StopIteration

    def results(self) -> list[BatchResult]:
        """Drain the batch, of which nothing was read yet: one result a prompt, in their order."""
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
    """`BatchStream` for `async for`; the prompts may come from an asynchronous iterable too."""

    def __init__(
        self,
        starter: Starter,
        make_request: Callable[[Prompt], Request],
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        template: Request | None = None,
    ) -> None:
        """`template`: a request without a prompt, to be verified before the first that has one."""
        super().__init__(starter, make_request)
        self._template = template
        self._events: AsyncMailbox[Event] | None = None
        self._asked: AsyncIterator[Prompt] | None = None
        self._asking: asyncio.Future[Prompt | _NoMore] | None = None
        self._loop_yield = LoopYield()
        self._reading: set[asyncio.Future[None]] = set()
        if isinstance(prompts, AsyncIterable):
            self._asked = aiter(prompts)
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
                if not self._active and self._asking is None:
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
        """Drain the batch, of which nothing was read yet: one result a prompt, in their order."""
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
        self._reading.add(reading)  # the loop itself would let go of it
        reading.add_done_callback(self._reading.discard)

    async def _read(self, request: Request, to_come: Callable[[], Request], sink: Sink[Token]) -> None:
        """Read what was asked for off the event loop, and start it then."""
        try:
            request.verifying = True
            request.become(await off_loop(to_come))
            request.verifying = False
            if not request.cancelled:
                self._starter._astart(request, sink)
        except Exception as error:
            sink.close(error)

    def _fill(self, box: Sink[Event]) -> None:
        """Admit prompts. One that an asynchronous iterable has yet to bring keeps no token waiting."""
        super()._fill(box)
        while self._asked is not None and len(self._active) < self._starter._batch_width:
            if self._asking is None:
                import asyncio

                self._asking = asyncio.ensure_future(_next(self._asked))
                self._asking.add_done_callback(lambda _: box.put(_WAKE))
            if not self._asking.done():
                return
            asking, self._asking = self._asking, None
            prompt = asking.result()
            if isinstance(prompt, _NoMore):
                self._asked = None
            else:
                self._admit(prompt, box)

    def close(self) -> None:
        super().close()
        self._asked = None
        asking, self._asking = self._asking, None
        if asking is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                asking.get_loop().call_soon_threadsafe(asking.cancel)

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
