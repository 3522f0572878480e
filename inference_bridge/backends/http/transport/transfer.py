# SPDX-License-Identifier: Apache-2.0
"""Sends a request and reads its answer, for threads and for coroutines: retries, timeouts, cancellation.

A request is sent again if the server can't be reached, closes the connection without an answer, answers with status
429, 502, 503 or 504, or still loads its model. It goes to another server if the route has one, else to the same server
after a pause. After its answer has begun, a request is not sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

import httpx2

from ....errors import GenerationError, ServerError
from ....request import Request
from ....types import Token
from . import errors as http_errors
from .call import Call, Reader
from .errors import Failure, UnansweredError
from .route import Route
from .sockets import Line
from .sse import EventReader, EventTooLongError, LineReader

_log = logging.getLogger(__name__)

RETRIES = 3
"""Maximum number of retries of a request. A server that loads its model is tried more often."""

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 4.0
"""Seconds before the first retry, which double with each retry, and their maximum."""

LONGEST_RETRY_AFTER = 60.0
"""Maximum of seconds to wait if the server asks for a pause (Retry-After). For more, the caller gets the error."""

MAX_ANSWER_BYTES = 256 << 20
"""Maximum size of an answer that is not streamed. Embeddings of many texts are the longest."""

_DRAIN_SECONDS = 0.05
"""Maximum of seconds between the last event of an answer and its end. Later, the connection is closed, not kept."""

_TOO_MUCH = (429, 503)
"""Statuses of a server that has too many requests."""

_DOWN = (429, 502, 503, 504)
"""Statuses after which a server is not used for a while, if there are others. After 500 another server is tried too."""

Explain = Callable[[ServerError], GenerationError]


def unexplained(error: ServerError) -> GenerationError:
    return error


# ---------------------------------------------------------------- shared by threads and coroutines


class _Attempts:
    """Decides when to try again, and when to give up."""

    def __init__(
        self, route: Route, request: Request, call: Call, explain: Explain, *, retry_refused: bool = True
    ) -> None:
        self.route = route
        self._retry_refused = retry_refused
        self.request = request
        self._explain = explain
        self.call = call
        self.begun = time.monotonic()
        self.first_token_deadline = self.begun + route.connection.first_token_timeout
        self.server = ""
        """The header "server" of the answer."""
        self.answering = False
        """Whether the first event of the answer has arrived."""
        self.given = False
        """Whether a Token of the answer was returned to the caller."""
        self._retries = 0
        self._paused = False
        self._looked_at: GenerationError | None = None
        self._logged_at = 0.0
        self._loading: GenerationError | None = None
        """The server's answer that it still loads its model."""

    @property
    def url(self) -> str:
        return self.route.connection.base_url + self.call.path

    @property
    def secrets(self) -> tuple[str, ...]:
        return (*self.call.private, *self.route.connection.secrets)

    def first_deadline(self) -> float:
        """Return the time until which the first event, or an answer that is not streamed, must arrive."""
        own = self.request.deadline
        return self.first_token_deadline if own is None else min(self.first_token_deadline, own)

    def deadline(self) -> float:
        """Return the time until which the next event must arrive."""
        latest = time.monotonic() + self.route.connection.first_token_timeout
        own = self.request.deadline
        return latest if own is None else min(latest, own)

    def transport(self, error: Exception, *, begun: bool = False, kept: bool = False) -> Failure:
        if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
            return Failure(self.no_answer())
        return http_errors.of_transport(
            error, self.url, begun=begun, kept=kept, retry_refused=self._retry_refused, private=self.secrets
        )

    def quotable(self, error: Exception) -> Exception | None:
        """Return `error`, to be shown as a cause; or None if it quotes a private text."""
        return error if http_errors.tells_nothing(error, self.secrets) else None

    def no_answer(self) -> GenerationError:
        """Return the error for a server that does not answer in time."""
        if self.request.remaining() == 0:
            return self.request.timed_out()
        if self._loading is not None and not self.answering:
            return self._loading
        what = "the answer stalled for" if self.answering else "no answer within"
        seconds = self.route.connection.first_token_timeout
        return UnansweredError(f"{self.url}: {what} {seconds:g} s (first_token_timeout)")

    def succeeded(self, response: httpx2.Response) -> bool:
        """Return whether the answer is a success."""
        self.server = response.headers.get("server", "")
        return response.status_code == 200

    def status(self, response: httpx2.Response, content: bytes) -> Failure:
        return http_errors.of_status(
            self.url, response.status_code, response.headers, content, self.secrets, context=self.call.context
        )

    def explained(self, error: GenerationError) -> GenerationError:
        if not isinstance(error, ServerError) or error.status is not None:
            return error
        explained = self._explain(error)
        if explained is not error:
            explained.__cause__ = error
        return explained

    def moved(self, failure: Failure) -> bool:
        """Return whether to try again at once on another server, which the route then has chosen."""
        error, before = failure.error, self._looked_at
        self._looked_at = error
        if error is before or not isinstance(error, ServerError) or self.request.cancelled:
            return False
        if error.status in _TOO_MUCH and failure.again != "loading":
            self.route.refused()
        if isinstance(error, UnansweredError) or error.status in _DOWN:
            self.route.failed()
        elif error.status != 500:
            return False
        if self.given or not self.route.move():
            return False
        self.answering, self._loading = False, None
        self.first_token_deadline = time.monotonic() + self.route.connection.first_token_timeout
        return True

    def pause(self, failure: Failure) -> float:
        """Return the seconds to wait before the next attempt. Raises the error of the failure to give up."""
        if failure.again == "at once" or self.moved(failure):
            return 0.0
        if (error := self.explained(failure.error)) is not failure.error:
            raise error
        waited = time.monotonic() - self.begun
        if failure.again == "loading":
            self._loading = error
            seconds = FIRST_PAUSE * 2.0 ** min(self._retries, 3)
            if waited - self._logged_at >= 5 or not self._logged_at:
                self._logged_at = waited or 1e-9
                _log.info("%s loads its model: waiting (%.0f s so far)", self.route.connection.base_url, waited)
        elif failure.again == "shorter" and (shorter := self.call.shorter(failure.room)) is not None:
            self.call = shorter
            return 0.0
        elif failure.again == "soon" and self._retries < RETRIES:
            seconds = min(FIRST_PAUSE * 2.0**self._retries, LONGEST_PAUSE) if failure.wait is None else failure.wait
            if seconds > LONGEST_RETRY_AFTER:
                raise error
            _log.info("trying again in %.2g s: %s", seconds, error)
        else:
            raise error
        self._retries += 1
        if time.monotonic() + seconds >= self.first_deadline():
            raise error
        self._paused = True
        return seconds

    def begin(self) -> float:
        """Begin an attempt. Return the time until which the answer may take to begin."""
        if self._paused:
            self._paused = False
            self.route.wait_over()
        return self.first_deadline()


class _Events:
    """Makes Tokens from the bytes of an answer, and notices if they are not an answer.

    `error` is the error that ends the answer. It must be raised after the Tokens before it were yielded.
    """

    def __init__(self, attempts: _Attempts, reader: Reader) -> None:
        self._attempts = attempts
        self._reader = reader
        self._events = LineReader() if attempts.call.lines else EventReader()
        self.error: GenerationError | None = None
        self.due = attempts.first_token_deadline
        self.moved = False
        """Whether the last chunk completed an event. Only complete events count as progress of the server."""

    def chunk(self, chunk: bytes) -> list[Token]:
        """Return the Tokens that `chunk` completes."""
        try:
            data = self._events.feed(chunk)
        except EventTooLongError:
            self._malformed("a line of its answer is too long")
            return []
        self.moved = bool(data)
        if data:
            self._attempts.answering = True
            return self._counted(self._tokens(data))
        if time.monotonic() > self.due:  # it sends bytes, but no events
            self.error = self._attempts.no_answer()
        return []

    def end(self) -> list[Token]:
        """Process the end of the answer. Return the Tokens that were held back."""
        tokens = [] if self._reader.done else self._tokens(self._events.finish())
        if not self._attempts.answering and self._events.other:
            tokens += self._not_streamed(self._events.other)
        if self.error is None:
            try:
                tokens += self._reader.finish()
            except ServerError as error:
                kind = UnansweredError if isinstance(error, UnansweredError) else ServerError
                self.error = self._attempts.explained(kind(f"{self._attempts.url}: {error}"))
                if kind is UnansweredError and self._events.other:
                    where = self._attempts.url, self._events.other, self._attempts.secrets
                    self.error = http_errors.of_content(*where) or self.error
        return self._counted(tokens)

    def _not_streamed(self, content: bytes) -> list[Token]:
        """Return the Tokens of an answer without events: the whole answer as JSON, an error, or something else."""
        if content.lstrip().startswith(b"{"):
            return self._tokens([content])
        beginning = http_errors.quoted(http_errors.plain_text(content[:1000]), self._attempts.secrets)
        self._malformed(f"its answer is not a stream of events, but {beginning!r}")
        return []

    def _counted(self, tokens: list[Token]) -> list[Token]:
        if tokens:
            self._attempts.given = True
            self._attempts.route.produced(len(tokens))
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
                if one.strip() == b"[DONE]":
                    self._reader.done = True
                else:
                    self._malformed("an event of its answer is not JSON")
                break
            try:
                usual = "choices" in event or "content" in event or "done" in event
                if ("error" in event or not usual) and (wrong := http_errors.error_in(event)):
                    self.error = http_errors.of_event(self._attempts.url, wrong, self._attempts.secrets)
                    break
                out += read(event)
            except ServerError as error:
                self.error = ServerError(f"{self._attempts.url}: {error}")
                if wrong := http_errors.error_of_choice(event):
                    self.error = http_errors.of_event(self._attempts.url, wrong, self._attempts.secrets)
                break
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
                self._malformed("an event of its answer has another form than it should", error)
                break
            if self._reader.done:
                break
        return out

    def _malformed(self, what: str, cause: Exception | None = None) -> None:
        self.error = http_errors.MalformedAnswerError(self._attempts.url, what)
        self.error.__cause__ = cause


# ---------------------------------------------------------------- for threads


def stream(
    route: Route, request: Request, call: Call, reader: Callable[[Request], Reader], explain: Explain
) -> Iterator[Token]:
    """Yield the Tokens of a streamed answer."""
    attempts = _Attempts(route, request, call, explain)
    line = Line()
    request.on_cancel(line.interrupt)
    with route:
        while True:
            try:
                yield from _streamed(attempts, line, reader(request))
                return
            except ServerError as error:
                if not attempts.moved(Failure(error)):
                    raise


def _streamed(attempts: _Attempts, line: Line, reader: Reader) -> Iterator[Token]:
    with _answer(attempts, line) as response:
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
            raise attempts.explained(attempts.transport(error, begun=True).error) from attempts.quotable(error)
        yield from events.end()
        if events.error is not None:
            raise events.error
        line.deadline = time.monotonic() + _DRAIN_SECONDS
        with contextlib.suppress(httpx2.HTTPError):
            next(chunks, None)


def fetch(
    route: Route,
    request: Request,
    call: Call,
    explain: Explain = unexplained,
    *,
    on_server: Callable[[str], None] | None = None,
    retry_refused: bool = True,
) -> Any:
    """Return the JSON of an answer. None if the request was cancelled.

    `on_server` gets the header "server" of the answer. `retry_refused`: whether a refused connection is retried.
    """
    attempts = _Attempts(route, request, call, explain, retry_refused=retry_refused)
    line = Line()
    request.on_cancel(line.interrupt)
    try:
        with route:
            while True:
                try:
                    return _fetched(attempts, line)
                except ServerError as error:
                    if not attempts.moved(Failure(error)):
                        raise
    finally:
        if on_server is not None and attempts.server:
            on_server(attempts.server)


def _fetched(attempts: _Attempts, line: Line) -> Any:
    with _answer(attempts, line) as response:
        if response is None:
            return None
        try:
            content = _read(response, MAX_ANSWER_BYTES)
        except httpx2.HTTPError as error:
            raise attempts.explained(attempts.transport(error, begun=True).error) from attempts.quotable(error)
    return _parsed(content, attempts)


@contextlib.contextmanager
def _answer(attempts: _Attempts, line: Line) -> Iterator[httpx2.Response | None]:
    """Yield the first successful answer. None if the request was cancelled before it came."""
    while True:
        line.deadline, line.connected = attempts.begin(), False
        client = attempts.route.connection.client()
        try:
            built = _build(client, attempts)
            with line.use():
                response = client.send(built, stream=True)
        except httpx2.HTTPError as error:
            line.release()
            failure = attempts.transport(error, kept=not line.connected)
            failure.error.__cause__ = attempts.quotable(error)
        else:
            try:
                if attempts.succeeded(response):
                    yield response
                    return
                with contextlib.suppress(httpx2.HTTPError):
                    failure = attempts.status(response, b"")
                    failure = attempts.status(response, _read(response, http_errors.MAX_ERROR_BYTES, cut=True))
            finally:
                line.release()
                response.close()
        if attempts.request.cancelled:
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
    route: Route, request: Request, call: Call, reader: Callable[[Request], Reader], explain: Explain
) -> AsyncGenerator[Token]:
    """The async variant of `stream`. It must run in its own task."""
    attempts = _Attempts(route, request, call, explain)
    with route:
        while True:
            try:
                async with contextlib.aclosing(_astreamed(attempts, reader(request))) as tokens:
                    async for token in tokens:
                        yield token
                return
            except ServerError as error:
                if not attempts.moved(Failure(error)):
                    raise


async def _astreamed(attempts: _Attempts, reader: Reader) -> AsyncGenerator[Token]:
    line = Line()
    async with _aanswer(attempts, line) as response:
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
                raise attempts.explained(attempts.transport(error, begun=True).error) from attempts.quotable(error)
            for token in events.end():
                yield token
            if events.error is not None:
                raise events.error
            line.deadline = time.monotonic() + _DRAIN_SECONDS
            with contextlib.suppress(httpx2.HTTPError):
                await anext(chunks, None)


async def afetch(route: Route, request: Request, call: Call, explain: Explain) -> Any:
    """The async variant of `fetch`. It must run in its own task."""
    attempts = _Attempts(route, request, call, explain)
    with route:
        while True:
            try:
                async with _aanswer(attempts, Line()) as response:
                    try:
                        content = await _aread(response, MAX_ANSWER_BYTES)
                    except httpx2.HTTPError as error:
                        raise attempts.explained(attempts.transport(error, begun=True).error) from attempts.quotable(
                            error
                        )
                return _parsed(content, attempts)
            except ServerError as error:
                if not attempts.moved(Failure(error)):
                    raise


@contextlib.asynccontextmanager
async def _aanswer(attempts: _Attempts, line: Line) -> AsyncIterator[httpx2.Response]:
    line.use_in_task()
    while True:
        line.deadline, line.connected = attempts.begin(), False
        client = await attempts.route.connection.async_client()
        try:
            response = await client.send(_build(client, attempts), stream=True)
        except httpx2.HTTPError as error:
            failure = attempts.transport(error, kept=not line.connected)
            failure.error.__cause__ = attempts.quotable(error)
        else:
            try:
                if attempts.succeeded(response):
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


def _build(client: httpx2.Client | httpx2.AsyncClient, attempts: _Attempts) -> httpx2.Request:
    call = attempts.call
    headers = {"Content-Type": "application/json"} if call.content is not None else None
    # The Line enforces the deadlines: a timeout of httpx2 would begin anew with each byte.
    timeout = httpx2.Timeout(None, connect=attempts.route.connection.connect_timeout)
    return client.build_request(call.method, attempts.url, content=call.content, headers=headers, timeout=timeout)


def _parsed(content: bytes, attempts: _Attempts) -> Any:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        raise http_errors.MalformedAnswerError(attempts.url, "its answer is not JSON") from None
    if wrong := http_errors.error_in(answer):
        error = http_errors.of_event(attempts.url, wrong, attempts.secrets)
        if isinstance(error, ServerError) and error.status is None:
            error.status = 200  # some servers refuse so
        raise error
    attempts.route.produced(1)
    return answer
