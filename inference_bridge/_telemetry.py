# SPDX-License-Identifier: Apache-2.0
"""Where operations are reported to OpenTelemetry, if the application uses it.

There is nothing to switch on: once the application has imported OpenTelemetry's API,
operations go through it to whatever was set up there, or to nothing. Until then none of it
is imported, and an operation costs two look-ups in sys.modules.
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

_OBSERVER = "inference_bridge.observability.otel"  # by name: it is above this module
_API = "opentelemetry.context"  # traces and metrics both import it


class Reported(Protocol):
    """What is read of a request here."""

    @property
    def forked(self) -> bool: ...
    @property
    def dropped(self) -> bool: ...


def caller() -> Any:
    """OpenTelemetry's context at this point, for the parent of a span; None where it is not used."""
    otel = _otel()
    return None if otel is None else otel.get_current()


def finished(model: object, request: Reported) -> None:
    """Report an operation that has ended."""
    otel = _otel()
    if otel is None or request.forked:  # the parent's: it is reported there
        return
    operation = otel.of_request(model, request)
    if operation is None:
        return
    if request.dropped:
        # It may be the garbage collector that dropped it, in the midst of the SDK's own work:
        # the SDK's locks are not reentrant, and neither are those that threading.Thread takes.
        import _thread

        with contextlib.suppress(RuntimeError):  # the interpreter is about to end
            _thread.start_new_thread(otel.report, (operation,))
    else:
        otel.report(operation)


def measured(metrics: GenerateMetrics) -> None:
    """Say what the `embed` that runs in this thread, or task, has cost."""
    otel = _otel()
    if otel is not None:
        otel.measured(metrics)


def observe(kind: type[Any]) -> None:
    """Have calls of the class's `classify` and `embed`, its own or a mixin's, reported as one operation each."""
    for name, operation in (("classify", "text_completion"), ("embed", "embeddings")):
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
        if otel is None or getattr(type(self), name, None) is not observing:  # called by a subclass's own
            return method(self, *args, **kwargs)
        with otel.whole(self, operation) as told:
            told.answer = method(self, *args, **kwargs)
        return told.answer

    return observing


def _aobserved(method: Callable[..., Awaitable[Any]], name: str, operation: str) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def observing(self: object, *args: Any, **kwargs: Any) -> Any:
        otel = _otel()
        if otel is None or getattr(type(self), name, None) is not observing:
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
    except (ImportError, TypeError) as error:  # an API from before what is used of it
        import logging

        text = "operations are not reported to OpenTelemetry: pip install -U 'inference-bridge[otel]' (%s)"
        logging.getLogger("inference_bridge").warning(text, error)
        return None
