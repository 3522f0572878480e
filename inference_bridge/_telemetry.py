# SPDX-License-Identifier: Apache-2.0
"""Reports operations to OpenTelemetry, if the application uses it.

Nothing has to be switched on. As soon as the application has imported the OpenTelemetry API, operations
are reported to the exporters that the application has configured. Before that, no part of OpenTelemetry is imported,
and each operation costs two look-ups in sys.modules.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from types import ModuleType

    from .types import GenerateMetrics

_OBSERVER = "inference_bridge.observability.otel"  # imported by name, because this layer must not import that one
_API = "opentelemetry.context"  # traces and metrics both import it


class Reported(Protocol):
    """The properties of a request that this module reads."""

    @property
    def forked(self) -> bool: ...
    @property
    def dropped(self) -> bool: ...


def caller() -> Any:
    """Return the current OpenTelemetry context, the parent of a span; None if OpenTelemetry is not used."""
    otel = _otel()
    return None if otel is None else otel.get_current()


def finished(model: object, request: Reported) -> None:
    """Report an operation that has ended."""
    otel = _otel()
    if otel is None or request.forked:  # the parent process, to which the operation belongs, reports it
        return
    operation = otel.of_request(model, request)
    if operation is None:
        return
    if request.dropped:
        # The garbage collector may call this while this thread holds a lock of the SDK or of threading.Thread. These
        # locks are not reentrant, so the report runs in a new thread, which is started without taking any of them.
        import _thread

        with contextlib.suppress(RuntimeError):  # the interpreter is ending
            _thread.start_new_thread(otel.report, (operation,))
    else:
        otel.report(operation)


def measured(metrics: GenerateMetrics) -> None:
    """Record the metrics of the `embed` call that runs in this thread or task."""
    otel = _otel()
    if otel is not None:
        otel.measured(metrics)


def observe(kind: type[Any]) -> None:
    """Wrap `classify`, `decide` and `embed` of a class, its own or inherited, so that each call is reported once."""
    for name, operation in (("classify", "text_completion"), ("decide", "text_completion"), ("embed", "embeddings")):
        for method, observed in ((name, _observed), (f"a{name}", _aobserved)):
            author = getattr(kind, method, None)
            if callable(author) and author not in _observing:
                replaced = observed(author, method, operation)
                _observing.add(replaced)
                setattr(kind, method, replaced)


_observing: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()


def _observed(method: Callable[..., Any], name: str, operation: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def observing(self: object, *args: Any, **kwargs: Any) -> Any:
        otel = _otel()
        # If the method of a subclass, or another wrapped method, called this one, then that call is reported.
        if otel is None or getattr(type(self), name, None) is not observing or otel.is_inside(self):
            return method(self, *args, **kwargs)
        with otel.whole(self, operation) as told:
            told.answer = method(self, *args, **kwargs)
        return told.answer

    return observing


def _aobserved(method: Callable[..., Awaitable[Any]], name: str, operation: str) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def observing(self: object, *args: Any, **kwargs: Any) -> Any:
        otel = _otel()
        if otel is None or getattr(type(self), name, None) is not observing or otel.is_inside(self):
            return await method(self, *args, **kwargs)
        with otel.whole(self, operation) as told:
            told.answer = await method(self, *args, **kwargs)
        return told.answer

    return observing


def _otel() -> ModuleType | None:
    if _API not in sys.modules or sys.is_finalizing():
        return None
    return _load()


@functools.cache
def _load() -> ModuleType | None:
    disabled = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")
    if "inference_bridge" in [name.strip() for name in disabled] or "*" in disabled:
        return None
    try:
        return importlib.import_module(_OBSERVER)
    except (ImportError, TypeError) as error:  # this version of the API is too old
        import logging

        from .availability import install_command

        text = "operations are not reported to OpenTelemetry: %s (%s)"
        logging.getLogger("inference_bridge").warning(text, install_command("otel"), error)
        return None
