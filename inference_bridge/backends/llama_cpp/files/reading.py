# SPDX-License-Identifier: Apache-2.0
"""Reading a GGUF file with llama.cpp, in a thread of its own: for whoever waits for it, or ahead of them.

This is what takes long in loading a model, and it leaves the interpreter free. So it should begin before everything
that can be done beside it, and nothing is imported here that can.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, TypeVar

from ....engine.worker import Worker
from ..flag import Flag
from ..placement import Placement
from ..weights import NativeModel
from .vetting import Subject, is_trusted

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Reading:
    """A model that is being read.

    `extra` are fields of llama.cpp's parameters, `taken` the names of those that
    were set; `made` frees what was made of it so far, and `wanted` says whether it still is.
    """

    def __init__(self, path: str, placement: Placement, extra: Mapping[str, Any]) -> None:
        self.path = path
        self.placement = placement
        self.extra = extra
        self.taken: set[str] = set()
        self.made = ExitStack()
        self.wanted = Flag(True)
        # A thread of its own: the one that decodes for other models has to go on, and Ctrl-C must
        # not come while llama.cpp reads, where it would wait for the end.
        self.worker = Worker("inference-bridge-llama")
        self.worker.add(self)
        begun = threading.Event()
        self._native = self.worker.submit(partial(self._read, begun.set))
        self._native.add_done_callback(lambda _: begun.set())  # it may fail before
        try:
            # Or the thread would wait for this one, 5 ms at a time, which has more to do.
            begun.wait()
        except BaseException:
            self.end()
            raise

    def _read(self, begins: Callable[[], None]) -> NativeModel:
        native = NativeModel(
            self.path,
            self.placement,
            extra=self.extra,
            taken=self.taken,
            wanted=self.wanted,
            begins=begins,
        )
        self.made.callback(native.close)
        return native

    def native(self) -> NativeModel:
        """Wait for the model. Raises ModelLoadError."""
        return self._native.result()

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Have `function` run in the thread that has read the model."""
        return self.worker.submit(function)

    def end(self) -> None:
        """Stop it, wherever it is, and free what was made and nobody took over; so with its thread."""
        self.worker.remove(self)

    # ------------------------------------------------ as the worker's loop

    def turn(self) -> bool:
        return False

    def interrupt(self) -> None:
        self.wanted.set(False)

    def close(self, exiting: bool) -> None:
        self.made.close()


# ---------------------------------------------------------------- ahead

_ahead: dict[_Identity, Reading] = {}
"""What was begun and nobody has asked for yet: one, or a few where threads began them at once."""


def begin(path: str) -> None:
    """Read the file at `path` as a load without options will want it.

    It is held until one does, until another is begun, or to the end of the process. Only a file that needs no trial
    load is read: there are some on which llama.cpp ends the process. Raises OSError.
    """
    if not is_trusted(Subject(path)):
        return
    identity = _identity(path)
    if identity in _ahead:
        return
    _end(list(_ahead))
    _log.debug("reading %s ahead", path)
    _ahead[identity] = Reading(path, Placement(), {})


def begun(path: str, placement: Placement, extra: Mapping[str, Any]) -> Reading | None:
    """What was begun of the file, which is the caller's from here; None if it was not, or not in this way."""
    identity = _identity(path)
    reading = None
    if placement == Placement() and not extra:
        reading = _ahead.pop(identity, None)
    _end(other for other in list(_ahead) if other.path == identity.path)
    return reading


def _end(identities: Iterable[_Identity]) -> None:
    for identity in identities:
        if reading := _ahead.pop(identity, None):
            reading.end()


class _Identity(NamedTuple):
    """Of a file: another as soon as the file is. A forked child, which has no thread that reads, has others too."""

    process: int
    path: str
    inode: int
    size: int
    changed: int


def _identity(path: str) -> _Identity:
    stat = os.stat(path)
    return _Identity(os.getpid(), os.path.abspath(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
