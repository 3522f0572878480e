# SPDX-License-Identifier: Apache-2.0
"""The life of a model: whether it is open, what runs on it, and how it is closed."""

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
    """Whether a model is open, what runs on it, and what came of that last.

    There is no lock, because a signal handler or a finalizer may interrupt any of these methods and close the model. An
    operation is added to those that run before it looks whether the model is closed; closing is noted before it is
    looked which ones run. So at least one of the two sees the other.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.closed = False
        self.name: str | None = None  # what its users call the model, for telemetry
        self.released: dict[Callable[..., None], object] = {}
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
            return  # a forked child owns nothing of it
        life.closed = True
        mine = object()
        first = life.released.setdefault(close, mine) is mine
        for request in life.running.copy():
            request.cancel(ModelClosedError("the model was closed while it generated"))
        if first:
            close(self)

    _closers.add(closed)
    return closed
