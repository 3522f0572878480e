# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's C interface as llama-cpp-python declares it (`lib`), its log, and what it complains of."""

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
"""ggml's levels: everything below a warning is detail that only debugging wants."""

_errors = threading.local()
_last = {"level": logging.DEBUG}


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _forward(level: int, text: bytes, _: object) -> None:
    if level != 5:  # 5 continues the line before
        _last["level"] = _LEVELS.get(level, logging.DEBUG)
    severity = _last["level"]
    line = text.decode("utf-8", "replace").rstrip()
    if not line.strip("."):
        return  # the progress dots
    if severity >= logging.WARNING:
        getattr(_errors, "lines", []).append(line)
    # What the engine complains of is detail to the user: where it matters, an error of ours tells.
    _log.log(min(severity, logging.INFO), "%s", line)


@cache
def start() -> None:
    """Initialise the library, once, with its log going to `logging` instead of the terminal."""
    log_to_logging(lib.llama_log_set)
    lib.llama_backend_init()


def log_to_logging(log_set: Callable[[Any, Any], None]) -> None:
    """Have a library's log, which `log_set` sends elsewhere, go to `logging`."""
    log_set(_forward, ctypes.c_void_p(0))


@contextmanager
def complaints() -> Iterator[list[str]]:
    """Collect llama.cpp's warnings and errors in this thread."""
    lines: list[str] = []
    log_to_logging(lib.llama_log_set)
    _errors.lines = lines
    try:
        yield lines
    finally:
        del _errors.lines


def attempt(make: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Return what `make` has llama.cpp make, and the warnings and errors meanwhile."""
    with complaints() as reasons:
        return make(), reasons


def last_of(complaints: Sequence[str]) -> str:
    """What to quote of them in an error."""
    return "; ".join(complaints[-3:]) or "it gave no reason"


def watch_load(params: Any, loaded: Callable[[float], None], stop: threading.Event | None) -> None:
    """Have llama.cpp call `loaded` with the part that it has loaded, after each tensor, and end when `stop` is set.

    Args:
        params: The parameters of a model or of a projector. They keep the callback alive.
        loaded: Called in the thread that loads, with a number from 0 to 1.
        stop: None: the load is not stopped.
    """

    def go_on(part: float, _: object) -> bool:
        loaded(part)
        return not (stop and stop.is_set())

    params.progress_callback = dict(params._fields_)["progress_callback"](go_on)


def set_fields(params: Any, extra: Mapping[str, Any], taken: set[str]) -> None:
    """Set the fields of a parameter struct that `extra` names."""
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
    """Whether llama.cpp was built for a GPU, and there is one."""
    return bool(lib.llama_supports_gpu_offload())
