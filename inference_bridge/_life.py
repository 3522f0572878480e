# SPDX-License-Identifier: Apache-2.0
"""The life of a model: whether it is open, what runs on it, and how it is closed."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from .errors import ModelClosedError
from .request import Request
from .types import GenerateMetrics


class Life:
    """Whether a model is open, what runs on it, and what came of that last."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.closed = False
        self.name: str | None = None  # what its users call the model, for telemetry
        self.released: set[Callable[..., None]] = set()
        self.running: set[Request] = set()  # streams end what they began, at the latest when they are dropped
        self.metrics = GenerateMetrics()


class Living(Protocol):
    """A model, as far as its closing is concerned."""

    _life: Life


_closers: weakref.WeakSet[Callable[[Any], None]] = weakref.WeakSet()


def closing(close: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wrap an author's `close`: it is called once, after operations are refused and the running ones ended.

    An abstract method, and one that is wrapped already, are returned as they are.
    """
    if getattr(close, "__isabstractmethod__", False) or close in _closers:
        return close

    @functools.wraps(close)
    def closed(self: Living) -> None:
        life = self._life
        if life.pid != os.getpid():
            return  # a forked child owns nothing of it, and the lock may be held there for ever
        with life.lock:
            life.closed = True
            running = life.running.copy()
            first = close not in life.released
            life.released.add(close)
        for request in running:
            request.cancel(ModelClosedError("the model was closed while it generated"))
        if first:
            close(self)

    _closers.add(closed)
    return closed
