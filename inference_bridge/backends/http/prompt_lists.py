# SPDX-License-Identifier: Apache-2.0
"""Sends the prompts of a batch in one request, to a server that accepts lists and streams all answers together.

Each prompt keeps its own Request with its tokens, metrics and errors. One more Request, the leader, holds the
connection. If the list is refused or its answer breaks off, each prompt that has no token yet is sent in a request of
its own. So if the server refuses one prompt, only that prompt fails.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Protocol

from ..._concurrency.mailbox import Sink
from ...batch import AsyncBatchStream, BatchStream, Starter
from ...errors import ContextLengthExceededError, GenerationError, GenerationTimeoutError, ServerError
from ...request import Request
from ...types import Token
from .jobs import Streamed
from .transport.call import Call, Reader
from .transport.errors import UnansweredError

MOST = 256
"""Maximum number of prompts in one request."""

Start = Callable[[Request, Sink[Token]], None]
"""Begins a request. Its tokens are put into the sink, which is closed at the end."""


class ListingModel(Starter, Protocol):
    """A model whose server accepts lists."""

    def list_call(self, fields: Mapping[str, Any], prompts: Sequence[str]) -> Call: ...


@dataclass(eq=False, slots=True)
class _Member:
    request: Request
    sink: Sink[Token]
    reader: Reader
    begun: bool = False
    """Whether a token of its answer was emitted."""
    ended: bool = False
    """Whether its answer is complete."""


class _PromptList:
    """Prompts that were sent in one request. It is both the reader of the answer and the sink of the leader."""

    def __init__(self, members: Sequence[tuple[Request, Sink[Token]]], start: Start) -> None:
        self.done = False
        self.leader = Request("generate", members[0][0].config)
        self._start = start
        self._members = [_Member(one, sink, one.prepared.reader(one)) for one, sink in members]
        self._left = set(range(len(members)))
        self._answering = False

    def begin(self, call: Call) -> None:
        self.leader.prepared = Streamed(call, lambda _: self, running=self._running)
        self.leader.begin()
        for index, member in enumerate(self._members):
            member.request.on_cancel(partial(self._leave, index))
        self._start(self.leader, self)

    def _running(self) -> int:
        return len(self._left)

    def _leave(self, index: int) -> None:
        """Remove a prompt that its batch, or closing the model, has cancelled. The last one cancels the request."""
        if index in self._left:
            self._left.discard(index)
            self._members[index].sink.close()  # wakes a batch that waits for it, which then reads the request's error
        if not self._left:
            self.leader.cancel()

    # ------------------------------------------------ as the reader of the answer

    def read(self, event: Mapping[str, Any]) -> Sequence[Token]:
        choices = event.get("choices")
        if not choices:
            return ()  # the usage of all prompts together
        self._answering = True
        index = choices[0].get("index")
        if type(index) is not int or not 0 <= index < len(self._members):
            raise ServerError(f"the server gave an answer to prompt {index!r} of {len(self._members)}")
        member = self._members[index]
        if member.ended or member.request.cancelled:
            return ()
        ends = choices[0].get("finish_reason") is not None
        try:
            tokens = member.reader.read(event if ends else {"choices": choices})
            if ends or member.reader.done:
                tokens = [*tokens, *member.reader.finish()]
                ends = True
        except ServerError as error:
            self._end(index, error)
            return ()
        for token in tokens:
            member.sink.put(token)
        member.begun = member.begun or bool(tokens)
        if ends:
            self._end(index)
        return tokens

    def finish(self) -> Sequence[Token]:
        if not all(member.ended or member.request.cancelled for member in self._members):
            raise UnansweredError("the answer broke off before its end")
        return ()

    def _end(self, index: int, error: BaseException | None = None) -> None:
        member = self._members[index]
        member.ended = True
        # The last prompt ends with the request. If it ended now, the rest of the request would be cancelled, and the
        # connection would be closed.
        if error is not None or any(not other.ended and not other.request.cancelled for other in self._members):
            member.sink.close(error)
            self._left.discard(index)

    # ------------------------------------------------ as the sink of the leader

    def put(self, item: Token) -> None:
        """Ignore the token: its prompt's sink already has it."""

    def close(self, error: BaseException | None = None) -> None:
        refused = isinstance(error, ContextLengthExceededError) or getattr(error, "status", None) is not None
        again = (self._answering or refused) and not isinstance(error, GenerationTimeoutError)
        for index in sorted(self._left):
            member = self._members[index]
            if error is None or member.ended or member.request.cancelled:
                member.sink.close()
            elif again and not member.begun:
                self._start(member.request, member.sink)
            else:
                member.sink.close(_own(error, member.request))


def _own(error: BaseException, request: Request) -> BaseException:
    """Return a copy of `error` for one prompt, because each error holds the output of its own prompt."""
    if isinstance(error, GenerationTimeoutError):
        return request.timed_out()
    if not isinstance(error, GenerationError):
        return error
    own = ServerError(str(error), status=getattr(error, "status", None))
    own.__cause__ = error
    return own


class _Waiting:
    """Requests that wait to be sent together."""

    def __init__(self, model: ListingModel, start: Start) -> None:
        self._model = model
        self._start = start
        self._requests: list[tuple[Request, Sink[Token]]] = []

    def add(self, request: Request, sink: Sink[Token]) -> None:
        self._requests.append((request, sink))

    def send(self) -> None:
        """Send requests whose bodies differ only in the prompt as lists, and the others one by one."""
        waiting = [one for one in self._requests if not one[0].cancelled]
        for request, sink in self._requests:
            if request.cancelled:
                sink.close()
        self._requests = []
        for shared, same in groupby(waiting, lambda one: _shared(one[0])):
            for members in _parts(list(same)):
                if shared is None or len(members) == 1:
                    for request, sink in members:
                        self._start(request, sink)
                else:
                    prompts = [request.prompt for request, _ in members]
                    _PromptList(members, self._start).begin(self._model.list_call(shared, prompts))


def _shared(request: Request) -> Mapping[str, Any] | None:
    """Return the body without the prompt. None if the request can't be part of a list."""
    fields = request.prepared.fields
    return None if fields is None else {name: value for name, value in fields.items() if name != "prompt"}


def _parts(members: list[tuple[Request, Sink[Token]]]) -> Iterator[list[tuple[Request, Sink[Token]]]]:
    for begin in range(0, len(members), MOST):
        yield members[begin : begin + MOST]


class ListedBatch(BatchStream[str]):
    """A batch that sends its prompts to the server as lists."""

    def __init__(self, model: ListingModel, make_request: Callable[[str], Request], prompts: Iterable[str]) -> None:
        super().__init__(model, make_request, prompts)
        self._waiting = _Waiting(model, model._start)

    def _launch(self, request: Request, sink: Sink[Token]) -> None:
        self._waiting.add(request, sink)

    def _fill(self, box: Any) -> None:
        if len(self._active) * 2 > self._starter._batch_width and self._events.waiting:
            return  # wait until more answers have ended, so that the next prompts form a list
        super()._fill(box)
        self._waiting.send()


class AsyncListedBatch(AsyncBatchStream[str]):
    """`ListedBatch` for `async for`."""

    def __init__(
        self,
        model: ListingModel,
        make_request: Callable[[str], Request],
        prompts: Iterable[str] | AsyncIterable[str],
        template: Request | None = None,
    ) -> None:
        super().__init__(model, make_request, prompts, template)
        self._waiting = _Waiting(model, model._astart)

    def _launch(self, request: Request, sink: Sink[Token]) -> None:
        self._waiting.add(request, sink)

    def _fill(self, box: Any) -> None:
        assert self._events is not None
        if len(self._active) * 2 > self._starter._batch_width and self._events.waiting:
            return
        super()._fill(box)
        self._waiting.send()
