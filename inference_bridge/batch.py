# SPDX-License-Identifier: Apache-2.0
"""Many prompts through one model: as many in flight as it takes at once, the rest not yet read.

Prompts are pulled in the consumer's thread, and only when an earlier one has ended, so
memory stays flat however many there are, and a slow consumer slows the intake.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from .errors import GenerationError, ModelClosedError
from .mailbox import AsyncMailbox, Mailbox, Sink
from .request import Request
from .types import BatchResult, Token

if TYPE_CHECKING:
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
    def _start(self, request: Request, sink: Sink[Token]) -> None: ...


class _End:
    __slots__ = ("error",)

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


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
    """What both colours share: which prompts are in flight, and what became of the others."""

    def __init__(self, starter: Starter, make_request: Callable[[Prompt], Request]) -> None:
        self.errors: dict[int, Exception] = {}
        """The prompts that failed, by their index."""
        self._starter = starter
        self._make_request = make_request
        self._active: dict[int, Request] = {}
        self._kept: dict[int, BatchResult] | None = None
        self._next_index = 0
        self._closed = False

    def _admit(self, prompt: Prompt, box: Sink[Event]) -> None:
        index, self._next_index = self._next_index, self._next_index + 1
        try:
            request = self._make_request(prompt)
        except ModelClosedError:
            raise
        except Exception as error:
            self._conclude(index, BatchResult(error=error))
            return
        request.begin()
        self._starter._begin(request)
        self._active[index] = request
        self._starter._start(request, _Share(box, index))

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
        del self._active[index]
        error = request.failure(error) if error is not None else None
        request.end(error)
        request.cancel()  # frees what the operation may still hold
        self._starter._end(request)
        if error is not None and (isinstance(error, ModelClosedError) or not isinstance(error, Exception)):
            raise error
        so_far = request.result()
        if isinstance(error, GenerationError) and error.partial is None:
            error.partial = so_far
        self._conclude(index, BatchResult(so_far.tokens, so_far.finish_reason, so_far.metrics, error))

    def _conclude(self, index: int, result: BatchResult) -> None:
        if result.error is not None:
            self.errors[index] = result.error
        if self._kept is not None:
            self._kept[index] = result

    def _sorted(self) -> list[BatchResult]:
        assert self._kept is not None
        return [result for _, result in sorted(self._kept.items())]

    def close(self) -> None:
        """End every prompt in flight, and take no more. Idempotent."""
        self._closed = True
        for index, request in list(self._active.items()):
            request.cancel()
            self._finish(index, request, None)


class BatchStream(_Batch[Prompt]):
    """An iterator over (index of the prompt, its next Token), from all prompts in flight."""

    def __init__(self, starter: Starter, make_request: Callable[[Prompt], Request], prompts: Iterable[Prompt]) -> None:
        super().__init__(starter, make_request)
        self._prompts: Iterator[Prompt] | None = iter(prompts)
        self._box: Mailbox[Event] = Mailbox()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[int, Token]:
        try:
            while not self._closed:
                self._starter._check_open()
                while self._prompts is not None and len(self._active) < self._starter._batch_width:
                    try:
                        prompt = next(self._prompts)
                    except StopIteration:
                        self._prompts = None
                    else:
                        self._admit(prompt, self._box)
                if not self._active:
                    break
                token = self._take(next(self._box))
                if token is not None:
                    return token
        except BaseException:
            self.close()
            raise
        raise StopIteration

    def results(self) -> list[BatchResult]:
        """Drain the batch: one result a prompt, in their order."""
        self._kept = {}
        for _ in self:
            pass
        return self._sorted()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._active:
            self.close()


class AsyncBatchStream(_Batch[Prompt]):
    """`BatchStream` for `async for`; the prompts may come from an asynchronous iterable too."""

    def __init__(
        self,
        starter: Starter,
        make_request: Callable[[Prompt], Request],
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
    ) -> None:
        super().__init__(starter, make_request)
        self._prompts: AsyncIterator[Prompt] | None = (
            aiter(prompts) if isinstance(prompts, AsyncIterable) else _asynchronously(prompts)
        )
        self._box: AsyncMailbox[Event] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, Token]:
        try:
            if self._box is None:
                self._box = AsyncMailbox()
            while not self._closed:
                self._starter._check_open()
                while self._prompts is not None and len(self._active) < self._starter._batch_width:
                    try:
                        prompt = await anext(self._prompts)
                    except StopAsyncIteration:
                        self._prompts = None
                    else:
                        self._admit(prompt, self._box)
                if not self._active:
                    break
                token = self._take(await anext(self._box))
                if token is not None:
                    return token
        except BaseException:
            self.close()
            raise
        raise StopAsyncIteration

    async def results(self) -> list[BatchResult]:
        """Drain the batch: one result a prompt, in their order."""
        self._kept = {}
        async for _ in self:
            pass
        return self._sorted()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._active:
            self.close()


async def _asynchronously(prompts: Iterable[Prompt]) -> AsyncIterator[Prompt]:
    for prompt in prompts:
        yield prompt
