# SPDX-License-Identifier: Apache-2.0
"""Connections on which the headers of a request must arrive in time. uvicorn itself does not limit that time."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def bounded(seconds: float) -> type[asyncio.Protocol]:
    """Return a class of connections. A connection is closed if the headers of a request do not arrive in time.

    Args:
        seconds: The time for the headers, from the start of the connection or from the end of the last answer.
    """

    class Bounded(_Bounded):
        head_seconds = seconds

    return Bounded


class _Bounded(H11Protocol):
    head_seconds: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        """Start the timer while headers are awaited, and stop it during a request."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._overdue is None:
            self._overdue = self.loop.call_later(self.head_seconds, self._close)

    def _stop(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _close(self) -> None:
        self._overdue = None
        if not self.transport.is_closing():
            self.transport.close()
