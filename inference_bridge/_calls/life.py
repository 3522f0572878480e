# SPDX-License-Identifier: Apache-2.0
"""The state of a model: whether it is open, and which operations run on it; and how it is closed."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import ModelClosedError
from ..request import Request
from ..types import GenerateMetrics


class Life:
    """Whether a model is open, which operations run on it, and the metrics of the last one.

    No lock is used, because a signal handler or a finalizer may interrupt any of these steps and close the model. An
    operation is first added to `running`, and then checks `closed`. `close` first sets `closed`, and then reads
    `running`. So at least one of the two sees the other.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.closed = False
        self.name: str | None = None  # the name under which users know the model, for telemetry
        self.released: dict[Callable[..., None], object] = {}
        self.running: set[Request] = set()  # a stream removes its request at its end, at the latest when it is dropped
        self.metrics = GenerateMetrics()


class Closable(Protocol):
    """The attribute of a model that `closing` uses."""

    _life: Life


_closers: weakref.WeakSet[Callable[[Any], None]] = weakref.WeakSet()


def closing(close: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wrap an author's `close`: refuse new operations, cancel the running ones, and then call `close`, only once.

    An abstract method, or a method that is already wrapped, is returned unchanged.
    """
    if getattr(close, "__isabstractmethod__", False) or close in _closers:
        return close

    @functools.wraps(close)
    def closed(self: Closable) -> None:
        life = self._life
        if life.pid != os.getpid():
            return  # in a forked child: the model belongs to the parent process
        life.closed = True
        mine = object()
        first = life.released.setdefault(close, mine) is mine
        for request in life.running.copy():
            request.cancel(ModelClosedError("the model was closed while it generated"))
        if first:
            close(self)

    _closers.add(closed)
    return closed
