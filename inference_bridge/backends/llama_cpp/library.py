# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's C interface as llama-cpp-python declares it (`lib`), and its log."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

_log = logging.getLogger("inference_bridge.llama_cpp.native")


lib: Any = import_module("llama_cpp.llama_cpp")
"""The C functions, structs and constants."""

_LEVELS = {3: logging.WARNING, 4: logging.ERROR}
"""ggml's levels: everything below a warning is logged as DEBUG."""

_errors = threading.local()
_last = {"level": logging.DEBUG}


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _forward(level: int, text: bytes, _: object) -> None:
    if level != 5:  # 5 continues the line before
        _last["level"] = _LEVELS.get(level, logging.DEBUG)
    severity = _last["level"]
    line = text.decode("utf-8", "replace").rstrip()
    if not line.strip("."):
        return  # dots that show progress
    if severity >= logging.WARNING:
        getattr(_errors, "lines", []).append(line)
    # At most INFO: if a warning of the engine matters to the user, an error of this library quotes it.
    _log.log(min(severity, logging.INFO), "%s", line)


@cache
def start() -> None:
    """Initialise the library once, and send its log to `logging` instead of the terminal."""
    log_to_logging(lib.llama_log_set)
    lib.llama_backend_init()


def log_to_logging(log_set: Callable[[Any, Any], None]) -> None:
    """Send the log of a library to `logging`. `log_set` is its function that sets the log callback."""
    log_set(_forward, ctypes.c_void_p(0))


@contextmanager
def complaints() -> Iterator[list[str]]:
    """Collect llama.cpp's warnings and errors in this thread. The calls must not be nested."""
    lines: list[str] = []
    log_to_logging(lib.llama_log_set)
    _errors.lines = lines
    try:
        yield lines
    finally:
        del _errors.lines


def attempt(make: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Return the result of `make`, a call of llama.cpp, and the warnings and errors of that call."""
    with complaints() as reasons:
        return make(), reasons


def last_of(complaints: Sequence[str]) -> str:
    """Return the text that an error quotes: the last three lines."""
    return "; ".join(complaints[-3:]) or "it gave no reason"


def watch_load(params: Any, loaded: Callable[[float], None], stop: threading.Event | None) -> None:
    """Call `loaded` after each tensor that llama.cpp loads, and end the load when `stop` is set.

    Args:
        params: The parameters of a model or of a projector. They keep the callback alive.
        loaded: A function of the part that is loaded, from 0 to 1. It is called in the thread that loads.
        stop: None if the load is never stopped.
    """

    def go_on(part: float, _: object) -> bool:
        loaded(part)
        return not (stop and stop.is_set())

    params.progress_callback = dict(params._fields_)["progress_callback"](go_on)


def set_fields(params: Any, extra: Mapping[str, Any], taken: set[str]) -> None:
    """Set the fields of a parameter struct that `extra` names, and add their names to `taken`.

    Raises:
        TypeError: A field is a pointer, or the value has another type.
    """
    for name, kind in params._fields_:
        if name in extra:
            if not issubclass(kind, ctypes._SimpleCData) or kind is ctypes.c_void_p:
                raise TypeError(f"extra[{name!r}] can't be set: it is a pointer")
            try:
                setattr(params, name, extra[name])
            except TypeError:
                raise TypeError(f"extra[{name!r}] must be a {kind.__name__[2:]}, not {extra[name]!r}") from None
            taken.add(name)


def can_offload() -> bool:
    """Return whether llama.cpp was built for a GPU and finds one."""
    return bool(lib.llama_supports_gpu_offload())
