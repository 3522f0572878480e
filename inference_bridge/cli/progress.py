# SPDX-License-Identifier: Apache-2.0
"""A line on the terminal while a command waits for a model: what it does, for how long, and how much is loaded."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..authoring import load_progress

PATIENCE = 1.0
"""Seconds that a command may take before the line is shown."""
_INTERVAL = 0.5
_CLEAR = "\r\x1b[K"


def is_terminal() -> bool:
    """Whether stderr is a terminal on which a line can be drawn again."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class Progress:
    """Shows a line on stderr, if that is a terminal, from `PATIENCE` seconds after the start until `end`.

    Args:
        model: The name of the model that the command loads, and then waits for.
        shown: Whether to show anything.
    """

    def __init__(self, model: str, shown: bool) -> None:
        self._model = model
        self._doing = f"Loading {model}"
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        if shown and is_terminal():
            self._thread = threading.Thread(target=self._show, name="inference-bridge-progress", daemon=True)
            self._thread.start()

    def loaded(self, doing: str = "reads the prompt") -> None:
        """Say from now on what the model, which is loaded, does."""
        self._doing = f"{self._model} {doing}"

    def end(self) -> None:
        """Remove the line. Idempotent."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _show(self) -> None:
        started = time.monotonic()
        wait, drawn = PATIENCE, False
        while not self._over.wait(wait):
            part = load_progress.part
            loaded = "" if part is None else f"{part:.0%}, "
            end = f": {loaded}{time.monotonic() - started:.0f} s"
            # A line that the terminal wraps could not be removed.
            doing = self._doing[: max(_columns() - len(end) - 1, 0)]
            sys.stderr.write(f"{_CLEAR}{doing}{end}")
            sys.stderr.flush()
            wait, drawn = _INTERVAL, True
        if drawn:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


@contextmanager
def waiting(model: str, shown: bool = True) -> Iterator[Progress]:
    """Say on the terminal that a command waits for a model, until `Progress.end` or the end of this."""
    progress = Progress(model, shown)
    try:
        yield progress
    finally:
        progress.end()
