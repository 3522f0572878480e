# SPDX-License-Identifier: Apache-2.0
"""A progress line on the terminal while a command waits for a model: its state, the time, and how much is loaded."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..authoring import load_progress

DELAY = 1.0
"""Seconds after which the line is shown."""
_INTERVAL = 0.5
_CLEAR = "\r\x1b[K"


def is_terminal() -> bool:
    """Return whether stderr is a terminal on which a line can be overwritten."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class Progress:
    """Shows a line on stderr, if that is a terminal, from `DELAY` seconds after the start until `end`.

    Args:
        model: The name of the model that the command loads, and then waits for.
        shown: Whether the line is shown at all.
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
        """Show that the model is loaded, and what it does now."""
        self._doing = f"{self._model} {doing}"

    def end(self) -> None:
        """Remove the line. Idempotent."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _show(self) -> None:
        started = time.monotonic()
        wait, drawn = DELAY, False
        while not self._over.wait(wait):
            part = load_progress.part
            loaded = "" if part is None else f"{part:.0%}, "
            end = f": {loaded}{time.monotonic() - started:.0f} s"
            # The line must fit: if the terminal wrapped it, only its last part could be removed.
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
    """Show a progress line until `Progress.end`, or until the end of the `with` block.

    Args:
        model: The name of the model.
        shown: Whether the line is shown at all.
    """
    progress = Progress(model, shown)
    try:
        yield progress
    finally:
        progress.end()
