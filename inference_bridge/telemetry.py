# SPDX-License-Identifier: Apache-2.0
"""Where operations are reported to OpenTelemetry, if the application uses it.

There is nothing to switch on: once the application has imported OpenTelemetry's API,
operations go through it to whatever was set up there, or to nothing. Until then none of it
is imported, and an operation costs two look-ups in sys.modules.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from .model import TextModel
    from .request import Request
    from .types import GenerateMetrics

    Embed = Callable[[Any, Sequence[str]], list[list[float]]]
    AsyncEmbed = Callable[[Any, Sequence[str]], Awaitable[list[list[float]]]]

_API = "opentelemetry.context"  # traces and metrics both import it


def caller() -> Any:
    """OpenTelemetry's context at this point, for the parent of a span; None where it is not used."""
    otel = _otel()
    return None if otel is None else otel.get_current()


def finished(model: TextModel, request: Request) -> None:
    """Report an operation that has ended."""
    otel = _otel()
    if otel is None:
        return
    operation = otel.of_request(model, request)
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


def observe_embedding(kind: type[TextModel]) -> None:
    """Have the class's `embed` and `aembed`, its own or a mixin's, reported."""
    for name, observed in (("embed", _observed), ("aembed", _aobserved)):
        method = getattr(kind, name, None)
        if method is not None and method not in _observing:
            replaced = observed(method)
            _observing.add(replaced)
            setattr(kind, name, replaced)


_observing: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()


def _observed(embed: Embed) -> Embed:

    @functools.wraps(embed)
    def observing(self: TextModel, texts: Sequence[str]) -> list[list[float]]:
        otel = _otel()
        if otel is None or getattr(type(self), "embed", None) is not observing:  # called by a subclass's own
            return embed(self, texts)
        with otel.embedding(self) as operation:
            operation.vectors = embed(self, texts)
        return operation.vectors  # type: ignore[no-any-return]

    return observing


def _aobserved(aembed: AsyncEmbed) -> AsyncEmbed:

    @functools.wraps(aembed)
    async def observing(self: TextModel, texts: Sequence[str]) -> list[list[float]]:
        otel = _otel()
        if otel is None or getattr(type(self), "aembed", None) is not observing:
            return await aembed(self, texts)
        with otel.embedding(self) as operation:
            operation.vectors = await aembed(self, texts)
        return operation.vectors  # type: ignore[no-any-return]

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
        from . import otel
    except (ImportError, TypeError) as error:  # an API from before what is used of it
        import logging

        text = "operations are not reported to OpenTelemetry: pip install -U 'inference-bridge[otel]' (%s)"
        logging.getLogger("inference_bridge").warning(text, error)
        return None
    return otel
