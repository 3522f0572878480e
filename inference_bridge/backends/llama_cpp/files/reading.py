# SPDX-License-Identifier: Apache-2.0
"""Reading a GGUF file with llama.cpp, in a thread of its own.

This is what takes long in loading a model, and it leaves the interpreter free. So it should begin before everything
that can be done beside it, and nothing is imported here that can.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, TypeVar

from ....engine.worker import Worker
from ..placement import Placement
from ..weights import NativeModel

T = TypeVar("T")


class Reading:
    """A model that is being read.

    `extra` are fields of llama.cpp's parameters, `taken` the names of those that
    were set; `made` frees what was made of it so far, and `stop` ends the reading.
    """

    def __init__(self, path: str, placement: Placement, extra: Mapping[str, Any]) -> None:
        self.path = path
        self.placement = placement
        self.extra = extra
        self.taken: set[str] = set()
        self.made = ExitStack()
        self.stop = threading.Event()
        # A thread of its own: the one that decodes for other models has to go on, and Ctrl-C must
        # not come while llama.cpp reads, where it would wait for the end.
        self.worker = Worker("inference-bridge-llama")
        self.worker.add(self)
        self._native = self.worker.submit(self._read)

    def _read(self) -> NativeModel:
        native = NativeModel(self.path, self.placement, extra=self.extra, taken=self.taken, stop=self.stop)
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
        self.stop.set()

    def close(self, exiting: bool) -> None:
        self.made.close()
