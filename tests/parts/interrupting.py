# SPDX-License-Identifier: Apache-2.0
"""A call that is interrupted at one of its lines, in its own thread, as by a signal handler or a finalizer."""

from __future__ import annotations

import linecache
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

TIMEOUT = 5.0
"""Seconds after which a call counts as hanging."""

_OWN = str(Path(__file__).parents[2] / "inference_bridge")
_LIBRARY = tuple(str(Path(threading.__file__).parent / name) for name in ("threading.py", "concurrent"))
_APART = ("options.py", "types.py", "_telemetry.py", "_calls/requests.py")
"""Modules without state: interrupting them is the same as interrupting their callers."""


Place = tuple[str, int]
"""A file's name, and the number of a line in it."""


class Interrupted:
    """The outcome of a call: its result or its error, and whether the line was reached."""

    def __init__(self) -> None:
        self.reached = False
        self.where = ""
        self.result: Any = None
        self.error: BaseException | None = None


def places_in_locks(work: Callable[[], Any]) -> list[Place]:
    """Run `work`. Return the first line of each block that holds a lock."""
    places: dict[Place, None] = {}
    entered = False

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal entered
        name = frame.f_code.co_filename
        if not name.startswith(_OWN):
            return None
        if event == "line":
            if entered:
                places[name, frame.f_lineno] = None
            source = linecache.getline(name, frame.f_lineno).strip()
            entered = source.startswith("with ") and "lock" in source
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return list(places)


def interrupted(work: Callable[[], Any], interrupt: Callable[[], Any], at: int | Place) -> Interrupted:
    """Run `work` in a thread, and `interrupt` in the same thread before one of its lines.

    Args:
        work: What is interrupted.
        interrupt: What interrupts it.
        at: How many lines come before; those of the package count, and those of the standard library's threads and
            futures. Or the line itself.

    Raises:
        AssertionError: The call hangs. It has the stack.
    """
    outcome = Interrupted()
    left = at if isinstance(at, int) else None

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        name = frame.f_code.co_filename
        if outcome.reached or not name.startswith((_OWN, *_LIBRARY)) or name.endswith(_APART):
            return None
        if event == "line":
            if left == 0 or (left is None and at == (name, frame.f_lineno)):
                outcome.reached = True
                outcome.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
                interrupt()
            left = None if left is None else left - 1
        return trace

    def run() -> None:
        sys.settrace(trace)
        try:
            outcome.result = work()
        except BaseException as error:
            outcome.error = error
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=run, name="interrupted", daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if thread.is_alive():
        frame = sys._current_frames()[thread.ident or 0]
        stack = "".join(traceback.format_stack(frame)[-12:])
        raise AssertionError(f"hangs, interrupted before line {at} ({outcome.where}):\n{stack}")
    return outcome
