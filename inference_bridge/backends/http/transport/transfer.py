# SPDX-License-Identifier: Apache-2.0
"""Sending a request and reading its answer, for threads and for coroutines: retries, timeouts, cancellation.

Nothing is sent twice once an answer has begun. Before that, what a little patience may mend
is tried again: no connection, a connection closed in silence, 429, 502, 503, 504, and a
server that loads its model.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import httpx2

from ....errors import GenerationError, ServerError
from ....request import Request
from ....types import Token
from . import errors as http_errors
from .connection import Connection
from .errors import Failure
from .sockets import Line
from .sse import EventReader, EventTooLongError

_log = logging.getLogger(__name__)

RETRIES = 3
"""How often one request is sent again, where the server does not say that it loads."""

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 4.0
"""Seconds before the first retry, doubled for each further one, and its limit."""

LONGEST_ASKED = 60.0
"""Seconds that a server may ask to wait (Retry-After). For more, the caller is told instead."""

MAX_ANSWER_BYTES = 256 << 20
"""Of an answer that is read as a whole. Embeddings of many texts are the longest."""

_DRAIN_SECONDS = 0.05
"""How long the end of an answer may take to follow its last event. Then its connection is closed, not kept."""

Explain = Callable[[ServerError], GenerationError]


def unexplained(error: ServerError) -> GenerationError:
    return error


@dataclass(frozen=True)
class Call:
    """A request to the server. `private` are texts that no error message may quote."""

    path: str
    content: bytes | None = None
    method: str = "POST"
    private: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Call({self.method} {self.path})"

    def shorter(self, room: int) -> Call | None:
        """This call, with at most `room` tokens to generate. None where it asks for no more than that anyway."""
        fields = json.loads(self.content or b"{}")
        asked = fields.get("max_tokens")
        if not isinstance(asked, int) or not 0 < room < asked:
            return None
        return replace(self, content=body({**fields, "max_tokens": room}))


def body(value: Any) -> bytes:
    """JSON. Raises ValueError or TypeError for what JSON does not have."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


class Reader(Protocol):
    """Makes Tokens of a server's events.

    `done` is True once the answer is whole. `finish` is called where the events end, and gives
    what was held back; it raises ServerError where the answer is not whole.
    """

    done: bool

    def read(self, event: Any) -> Sequence[Token]: ...
    def finish(self) -> Sequence[Token]: ...


# ---------------------------------------------------------------- what both colours share


class _Attempts:
    """When to try again, and when to give up."""

    def __init__(
        self, connection: Connection, request: Request, call: Call, explain: Explain, *, patient: bool = True
    ) -> None:
        self._connection = connection
        self._patient = patient
        self._request = request
        self._explain = explain
        self.call = call
        self.url = connection.base_url + call.path
        self.secrets = (*call.private, *connection.secrets)
        self.begun = time.monotonic()
        self.first_token_deadline = self.begun + connection.first_token_timeout
        self.server = ""
        """What the server calls itself (the header of that name)."""
        self.answering = False
        """Whether the first event of the answer is there."""
        self._retries = 0
        self._told = 0.0

    def first_deadline(self) -> float:
        """Until when the first event, or an answer that is read as a whole, may take."""
        own = self._request.deadline
        return self.first_token_deadline if own is None else min(self.first_token_deadline, own)

    def deadline(self) -> float:
        """Until when the next event may take."""
        silence = time.monotonic() + self._connection.first_token_timeout
        own = self._request.deadline
        return silence if own is None else min(silence, own)

    def transport(self, error: Exception, *, begun: bool = False) -> Failure:
        if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
            return Failure(self.silent())
        return http_errors.of_transport(error, self.url, begun=begun, patient=self._patient, private=self.secrets)

    def silent(self) -> GenerationError:
        """The error for a server that lets us wait."""
        if self._request.remaining() == 0:
            return self._request.timed_out()
        what = "the answer stalled for" if self.answering else "no answer within"
        return ServerError(f"{self.url}: {what} {self._connection.first_token_timeout:g} s (first_token_timeout)")

    def met(self, response: httpx2.Response) -> bool:
        """Whether the answer is a success."""
        self.server = response.headers.get("server", "")
        return response.status_code == 200

    def status(self, response: httpx2.Response, content: bytes) -> Failure:
        return http_errors.of_status(self.url, response.status_code, response.headers, content, self.secrets)

    def explained(self, error: GenerationError) -> GenerationError:
        if not isinstance(error, ServerError) or error.status is not None:
            return error
        explained = self._explain(error)
        if explained is not error:
            explained.__cause__ = error
        return explained

    def pause(self, failure: Failure) -> float:
        """Seconds to wait before the next attempt. Raises the failure's error where there is to be none."""
        error = self.explained(failure.error)
        if error is not failure.error:
            raise error
        waited = time.monotonic() - self.begun
        if failure.again == "loading":
            seconds = FIRST_PAUSE * 2.0 ** min(self._retries, 3)
            if waited - self._told >= 5 or not self._told:
                self._told = waited or 1e-9
                _log.info("%s loads its model: waiting (%.0f s so far)", self._connection.base_url, waited)
        elif failure.again == "at once" and self._retries == 0:
            seconds = 0.0
        elif failure.again == "shorter" and (shorter := self.call.shorter(failure.room)) is not None:
            self.call = shorter
            return 0.0
        elif failure.again in ("at once", "soon") and self._retries < RETRIES:
            seconds = min(FIRST_PAUSE * 2.0**self._retries, LONGEST_PAUSE) if failure.wait is None else failure.wait
            if seconds > LONGEST_ASKED:
                raise error
            _log.info("trying again in %.2g s: %s", seconds, error)
        else:
            raise error
        self._retries += 1
        remaining = self._request.remaining()
        if remaining is not None and seconds >= remaining:
            raise error
        if time.monotonic() + seconds > self.first_token_deadline:
            raise error
        return seconds


class _Events:
    """Makes Tokens of an answer's bytes, and notices where it is none.

    `error` is what ends the answer, to be raised when the Tokens before it are taken.
    """

    def __init__(self, attempts: _Attempts, reader: Reader) -> None:
        self._attempts = attempts
        self._reader = reader
        self._events = EventReader()
        self.error: GenerationError | None = None
        self.due = attempts.first_token_deadline
        self.moved = False
        """Whether the last chunk completed an event: bytes that complete none do not make a server less silent."""

    def chunk(self, chunk: bytes) -> list[Token]:
        """The Tokens that `chunk` completes."""
        try:
            data = self._events.feed(chunk)
        except EventTooLongError:
            self._nonsense("a line of its answer is longer than any answer has need of")
            return []
        self.moved = bool(data)
        if data:
            self._attempts.answering = True
            return self._tokens(data)
        if time.monotonic() > self.due:  # it sends only what means nothing
            self.error = self._attempts.silent()
        return []

    def end(self) -> list[Token]:
        """The answer has ended: the Tokens that were held back."""
        tokens = [] if self._reader.done else self._tokens(self._events.finish())
        if self.error is None:
            try:
                tokens += self._reader.finish()
            except ServerError as error:
                self.error = self._attempts.explained(ServerError(f"{self._attempts.url}: {error}"))
        return tokens

    def _tokens(self, data: list[bytes]) -> list[Token]:
        read, loads = self._reader.read, json.loads
        out: list[Token] = []
        for one in data:
            if one == b"[DONE]":
                self._reader.done = True
                break
            try:
                event = loads(one.decode())
            except (ValueError, RecursionError):
                self._nonsense("an event of its answer is not JSON")
                break
            try:
                usual = "choices" in event or "content" in event
                if ("error" in event or not usual) and (wrong := http_errors.error_in(event)):
                    self.error = http_errors.of_event(self._attempts.url, wrong, self._attempts.secrets)
                    break
                out += read(event)
            except ServerError as error:
                self.error = ServerError(f"{self._attempts.url}: {error}")
                break
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
                self._nonsense("an event of its answer has another form than it should", error)
                break
            if self._reader.done:
                break
        return out

    def _nonsense(self, what: str, cause: Exception | None = None) -> None:
        self.error = http_errors.NonsenseError(self._attempts.url, what)
        self.error.__cause__ = cause


# ---------------------------------------------------------------- for threads


def stream(connection: Connection, request: Request, call: Call, reader: Reader, explain: Explain) -> Iterator[Token]:
    """The Tokens of a streamed answer."""
    attempts = _Attempts(connection, request, call, explain)
    line = Line()
    request.on_cancel(line.interrupt)
    with _answer(attempts, connection, request, line) as response:
        if response is None:
            return
        events = _Events(attempts, reader)
        chunks = response.iter_bytes()
        try:
            for chunk in chunks:
                yield from events.chunk(chunk)
                if events.error is not None:
                    raise events.error
                if reader.done:
                    break
                if events.moved:
                    line.deadline = events.due = attempts.deadline()
        except httpx2.HTTPError as error:
            raise attempts.explained(attempts.transport(error, begun=True).error) from error
        yield from events.end()
        if events.error is not None:
            raise events.error
        line.deadline = time.monotonic() + _DRAIN_SECONDS
        with contextlib.suppress(httpx2.HTTPError):
            next(chunks, None)


def fetch(
    connection: Connection,
    request: Request,
    call: Call,
    explain: Explain = unexplained,
    *,
    met: Callable[[str], None] | None = None,
    patient: bool = True,
) -> Any:
    """The JSON of an answer. None where the request was cancelled.

    `met` is told what the server calls itself, whatever it answers. `patient`: a server that refuses
    the connection is tried again.
    """
    attempts = _Attempts(connection, request, call, explain, patient=patient)
    line = Line()
    try:
        return _fetch(attempts, connection, request, line)
    finally:
        if met is not None and attempts.server:
            met(attempts.server)


def _fetch(attempts: _Attempts, connection: Connection, request: Request, line: Line) -> Any:
    request.on_cancel(line.interrupt)
    with _answer(attempts, connection, request, line) as response:
        if response is None:
            return None
        try:
            content = _read(response, MAX_ANSWER_BYTES)
        except httpx2.HTTPError as error:
            raise attempts.explained(attempts.transport(error, begun=True).error) from error
    return _parsed(content, attempts)


@contextlib.contextmanager
def _answer(
    attempts: _Attempts, connection: Connection, request: Request, line: Line
) -> Iterator[httpx2.Response | None]:
    """The first answer that is a success; None where the request was cancelled before one came."""
    client = connection.client()
    while True:
        line.deadline = attempts.first_deadline()
        try:
            built = _build(client, attempts, connection)
            with line.use():
                response = client.send(built, stream=True)
        except httpx2.HTTPError as error:
            line.release()
            failure = attempts.transport(error)
            failure.error.__cause__ = error
        else:
            try:
                if attempts.met(response):
                    yield response
                    return
                with contextlib.suppress(httpx2.HTTPError):
                    failure = attempts.status(response, b"")
                    failure = attempts.status(response, _read(response, http_errors.MAX_ERROR_BYTES, cut=True))
            finally:
                line.release()
                response.close()
        if request.cancelled:
            yield None
            return
        if line.pause(attempts.pause(failure)):
            yield None
            return


def _read(response: httpx2.Response, limit: int, *, cut: bool = False) -> bytes:
    parts, size = [], 0
    for chunk in response.iter_bytes():
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            if cut:
                break
            raise httpx2.ReadError(f"it is longer than {limit >> 20} MiB")
    return b"".join(parts)[:limit]


# ---------------------------------------------------------------- for coroutines


async def astream(
    connection: Connection, request: Request, call: Call, reader: Reader, explain: Explain
) -> AsyncGenerator[Token]:
    """`stream`, asynchronously, in a task of its own."""
    attempts = _Attempts(connection, request, call, explain)
    line = Line()
    async with _aanswer(attempts, connection, line) as response:
        events = _Events(attempts, reader)
        async with contextlib.aclosing(response.aiter_bytes()) as chunks:
            try:
                async for chunk in chunks:
                    for token in events.chunk(chunk):
                        yield token
                    if events.error is not None:
                        raise events.error
                    if reader.done:
                        break
                    if events.moved:
                        line.deadline = events.due = attempts.deadline()
            except httpx2.HTTPError as error:
                raise attempts.explained(attempts.transport(error, begun=True).error) from error
            for token in events.end():
                yield token
            if events.error is not None:
                raise events.error
            line.deadline = time.monotonic() + _DRAIN_SECONDS
            with contextlib.suppress(httpx2.HTTPError):
                await anext(chunks, None)


async def afetch(connection: Connection, request: Request, call: Call, explain: Explain) -> Any:
    """`fetch`, asynchronously, in a task of its own."""
    attempts = _Attempts(connection, request, call, explain)
    async with _aanswer(attempts, connection, Line()) as response:
        try:
            content = await _aread(response, MAX_ANSWER_BYTES)
        except httpx2.HTTPError as error:
            raise attempts.explained(attempts.transport(error, begun=True).error) from error
    return _parsed(content, attempts)


@contextlib.asynccontextmanager
async def _aanswer(attempts: _Attempts, connection: Connection, line: Line) -> AsyncIterator[httpx2.Response]:
    client = await connection.async_client()
    line.use_in_task()
    while True:
        line.deadline = attempts.first_deadline()
        try:
            response = await client.send(_build(client, attempts, connection), stream=True)
        except httpx2.HTTPError as error:
            failure = attempts.transport(error)
            failure.error.__cause__ = error
        else:
            try:
                if attempts.met(response):
                    yield response
                    return
                with contextlib.suppress(httpx2.HTTPError):
                    failure = attempts.status(response, b"")
                    failure = attempts.status(response, await _aread(response, http_errors.MAX_ERROR_BYTES, cut=True))
            finally:
                await response.aclose()
        await asyncio.sleep(attempts.pause(failure))


async def _aread(response: httpx2.Response, limit: int, *, cut: bool = False) -> bytes:
    parts, size = [], 0
    async for chunk in response.aiter_bytes():
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            if cut:
                break
            raise httpx2.ReadError(f"it is longer than {limit >> 20} MiB")
    return b"".join(parts)[:limit]


def _build(client: httpx2.Client | httpx2.AsyncClient, attempts: _Attempts, connection: Connection) -> httpx2.Request:
    call = attempts.call
    headers = {"Content-Type": "application/json"} if call.content is not None else None
    # The Line keeps time: it counts from the first byte sent, whatever came since.
    timeout = httpx2.Timeout(None, connect=connection.connect_timeout)
    return client.build_request(call.method, attempts.url, content=call.content, headers=headers, timeout=timeout)


def _parsed(content: bytes, attempts: _Attempts) -> Any:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        raise http_errors.NonsenseError(attempts.url, "its answer is not JSON") from None
    if wrong := http_errors.error_in(answer):
        error = http_errors.of_event(attempts.url, wrong, attempts.secrets)
        if isinstance(error, ServerError) and error.status is None:
            error.status = 200  # some servers refuse so
        raise error
    return answer
