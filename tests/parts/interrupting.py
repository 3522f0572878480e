# SPDX-License-Identifier: Apache-2.0
"""A call that is interrupted at one of its lines, in its own thread, as by a signal handler or a finalizer."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

PATIENCE = 5.0
"""Seconds after which a call counts as hanging."""

_OWN = str(Path(__file__).parents[2] / "inference_bridge")
_LIBRARY = tuple(str(Path(threading.__file__).parent / name) for name in ("threading.py", "concurrent"))
_APART = ("options.py", "types.py", "_telemetry.py", "_calls/requests.py")
"""Modules without state: interrupting them is the same as interrupting their callers."""


class Interrupted:
    """The outcome of a call: its result or its error, and whether the line was reached."""

    def __init__(self) -> None:
        self.reached = False
        self.where = ""
        self.result: Any = None
        self.error: BaseException | None = None


def interrupted(work: Callable[[], Any], interrupt: Callable[[], Any], line: int) -> Interrupted:
    """Run `work` in a thread, and `interrupt` in the same thread before the line with that number.

    Lines of the package count, and those of the standard library's threads and futures. Raises AssertionError with
    the stack if the call hangs.
    """
    outcome = Interrupted()
    left = line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        name = frame.f_code.co_filename
        if outcome.reached or not name.startswith((_OWN, *_LIBRARY)) or name.endswith(_APART):
            return None
        if event == "line":
            if not left:
                outcome.reached = True
                outcome.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
                interrupt()
            left -= 1
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
    thread.join(PATIENCE)
    if thread.is_alive():
        frame = sys._current_frames()[thread.ident or 0]
        stack = "".join(traceback.format_stack(frame)[-12:])
        raise AssertionError(f"hangs, interrupted before line {line} ({outcome.where}):\n{stack}")
    return outcome
