# SPDX-License-Identifier: Apache-2.0
"""Leaks of tests: sockets, which the garbage collector finds later, and threads.

pytest blames the test that runs when the collector does, which often has no part in the leak.
"""

from __future__ import annotations

import re
import socket
import sys
import threading
from collections.abc import Collection
from types import FrameType
from typing import Any

_DEPTH = 20
_made: dict[int, list[str]] = {}


def watch_sockets(patch: Any) -> None:
    """Note where each socket is made, and add that to the warning about one that was not closed."""
    make, tell = socket.socket.__init__, sys.unraisablehook

    def note(self: socket.socket, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        _made[self.fileno()] = _callers()

    def told(unraisable: sys.UnraisableHookArgs, /) -> None:
        found = re.search(r"unclosed <(?:\w+\.)*\w+ fd=(\d+)", str(unraisable.exc_value))
        if found is not None and unraisable.exc_value is not None and int(found[1]) in _made:
            unraisable.exc_value.add_note("It was made at\n" + "\n".join(_made[int(found[1])]))
        tell(unraisable)

    patch.setattr(socket.socket, "__init__", note)
    patch.setattr(sys, "unraisablehook", told)


def _callers() -> list[str]:
    """Return where the caller of the caller was called, the innermost call first."""
    frame: FrameType | None = sys._getframe(2)
    lines: list[str] = []
    while frame is not None and len(lines) < _DEPTH:
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return lines


def threads_since(before: Collection[threading.Thread]) -> list[str]:
    """Return the names of the threads begun since `before`, which is `threading.enumerate()` of that time.

    A count would be wrong where a thread of an earlier test has ended meanwhile.
    """
    return [thread.name for thread in threading.enumerate() if thread not in before]
