# SPDX-License-Identifier: Apache-2.0
"""Answers in JSON and as server-sent events, and clients that disconnect.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..errors import GenerationError

DONE = "data: [DONE]\n\n"
"""The last event of a stream in OpenAI's API."""


SEND_SECONDS = 60.0
"""A client that reads nothing from a stream for this long is disconnected."""


def encoded(text: str) -> bytes:
    """Encode JSON as UTF-8. A lone surrogate, which UTF-8 can't encode, becomes its escape in JSON."""
    return text.encode("utf-8", "backslashreplace")


def _json(data: Any) -> str:
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:  # the request had no such number (`guard.read_json` refuses it)
        why = "the model's answer has NaN or an infinite number, which JSON does not have"
        raise GenerationError(why) from None


class JSONAnswer(JSONResponse):
    """A JSON response. Its strings may have lone surrogates, because a request's strings may have them.

    Raises:
        GenerationError: A number is NaN or infinite.
    """

    def render(self, content: Any) -> bytes:
        return encoded(_json(content))


def event(data: Any) -> str:
    """Format one event whose data is JSON.

    Raises:
        GenerationError: A number is NaN or infinite.
    """
    return f"data: {_json(data)}\n\n"


def typed_event(kind: str, **data: Any) -> str:
    """Format one event of Anthropic's API or of /v1/responses. The type is the event's name and a field of its data."""
    return f"event: {kind}\n{event({'type': kind, **data})}"


@asynccontextmanager
async def on_disconnect(request: Request, cancel: Callable[[], object]) -> AsyncIterator[None]:
    """Call `cancel` if the client disconnects during the `async with` block.

    Args:
        request: The request. Its body must have been read.
        cancel: Called from the event loop.
    """

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        cancel()

    watching = asyncio.get_running_loop().create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


class EventStream(Response):
    """A response that streams events.

    Args:
        request: The request that is answered, whose body has been read.
        events: Yields formatted events. It is closed at the end, and when the client disconnects.
        cancel: Called from the event loop if the client disconnects. It must make `events` end.
    """

    media_type = "text/event-stream"

    def __init__(self, request: Request, events: AsyncGenerator[str, None], cancel: Callable[[], None]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._request = request
        self._events = events
        self._cancel = cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with on_disconnect(self._request, self._cancel):
                async for text in self._events:
                    async with asyncio.timeout(SEND_SECONDS):
                        await send({"type": "http.response.body", "body": encoded(text), "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:  # the client has disconnected, or reads nothing (TimeoutError is an OSError)
            self._cancel()
        finally:
            await self._events.aclose()
