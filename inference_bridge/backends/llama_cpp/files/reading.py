# SPDX-License-Identifier: Apache-2.0
"""Read a GGUF file with llama.cpp in a separate thread.

Reading takes most of the time of a load, and other Python code can run meanwhile. So it starts early, and modules that
reading does not need are imported after it has started, not here.
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

    Attributes:
        path: The GGUF file.
        placement: Devices and formats of the weights.
        extra: Parameters of llama.cpp, set directly.
        taken: The names in `extra` that were used.
        made: Frees what has been created so far.
        stop: Ends the reading when it is set.
        worker: The thread that reads.
    """

    def __init__(self, path: str, placement: Placement, extra: Mapping[str, Any]) -> None:
        self.path = path
        self.placement = placement
        self.extra = extra
        self.taken: set[str] = set()
        self.made = ExitStack()
        self.stop = threading.Event()
        # A separate thread: the worker of other models keeps decoding, and Ctrl-C in the main thread does not have to
        # wait until llama.cpp has read the file.
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
        """Run `function` in the thread that has read the model."""
        return self.worker.submit(function)

    def end(self) -> None:
        """Stop the reading, and free what was created unless a model owns it. End the thread if no model uses it."""
        self.worker.remove(self)

    # ------------------------------------------------ called by the worker

    def turn(self) -> bool:
        return False

    def interrupt(self) -> None:
        self.stop.set()

    def close(self, exiting: bool) -> None:
        self.made.close()
