# SPDX-License-Identifier: Apache-2.0
"""Spans and metrics of operations, in OpenTelemetry's conventions for generative AI.

A span is created when its operation has ended, with the times that were measured. So a dropped stream
leaves no span open, and no context has to be passed through an engine's threads. Names follow
https://opentelemetry.io/docs/specs/semconv/gen-ai/ (version 1.41, in development when this was written).
Prompts and answers are never recorded. An error is recorded by its type only, because its message may quote them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import metrics as metrics_api
from opentelemetry import trace
from opentelemetry.context import Context, attach, create_key, detach, get_current, get_value, set_value
from opentelemetry.trace import SpanKind, Status, StatusCode

from .. import __version__
from ..model import TextModel
from ..options import GenerateConfig
from ..request import Request
from ..types import GenerateMetrics

_OPERATIONS = {"chat": "chat", "generate": "text_completion"}

_INT = ("max_tokens", "seed")
_DOUBLE = ("temperature", "top_k", "top_p", "presence_penalty", "frequency_penalty")

_tracer = trace.get_tracer("inference_bridge", __version__)
_meter = metrics_api.get_meter("inference_bridge", __version__)
_duration = _meter.create_histogram(
    "gen_ai.client.operation.duration",
    "s",
    "GenAI operation duration.",
    explicit_bucket_boundaries_advisory=[0.01 * 2**step for step in range(14)],
)
_usage = _meter.create_histogram(
    "gen_ai.client.token.usage",
    "{token}",
    "Number of input and output tokens used.",
    explicit_bucket_boundaries_advisory=[4**step for step in range(14)],
)
_first_token = _meter.create_histogram(
    "gen_ai.server.time_to_first_token",
    "s",
    "Time to generate first token for successful responses.",
    explicit_bucket_boundaries_advisory=(
        [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]
    ),
)
_per_token = _meter.create_histogram(
    "gen_ai.server.time_per_output_token",
    "s",
    "Time per output token generated after the first token for successful responses.",
    explicit_bucket_boundaries_advisory=[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5],
)


@dataclass
class Operation:
    """What is reported about one operation.

    `started` is in seconds of the monotonic clock, `ended` in nanoseconds of the wall clock.
    """

    name: str
    owner: TextModel | None
    caller: Context | None
    started: float
    seconds: float = 0.0
    ended: int = 0
    asked: Mapping[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None
    error_type: str | None = None
    metrics: GenerateMetrics = field(default_factory=GenerateMetrics)
    answer: Any = None
    model: str = ""
    backend: str = ""

    def add(self, metrics: GenerateMetrics) -> None:
        """Add the tokens of one part of the operation."""
        so_far = self.metrics
        self.metrics = GenerateMetrics(
            so_far.prompt_tokens + metrics.prompt_tokens,
            so_far.cached_tokens + metrics.cached_tokens,
            so_far.generated_tokens + metrics.generated_tokens,
        )

    def end(self) -> None:
        self.ended = time.time_ns()
        self.seconds = time.monotonic() - self.started
        assert self.owner is not None
        self.model, self.backend = _name_of(self.owner), self.owner._name
        self.owner = None  # a context may outlive the operation, and must not keep the model


_WHOLE = create_key("inference_bridge.operation")
"""The key in a context for the Operation that includes everything the model does there."""


def of_request(model: TextModel, request: Request) -> Operation | None:
    """Return the operation to report for a request. None: the request was added to an operation that includes it."""
    whole = _whole(request.caller)
    if whole is not None and whole.owner is model:
        whole.add(request.metrics)
        return None
    operation = Operation(
        _OPERATIONS[request.kind],
        model,
        request.caller,
        request.started,
        asked=_asked(request.config),
        finish_reason=request.finish_reason,
        error_type=request.error_type,
        metrics=request.metrics,
    )
    operation.end()
    return operation


@contextlib.contextmanager
def whole(model: TextModel, name: str) -> Iterator[Operation]:
    """Report everything that the model does in the block as one operation.

    Args:
        model: The model.
        name: The operation's name.

    Yields:
        The operation. The block may set its results, such as `answer`.
    """
    operation = Operation(name, model, get_current(), time.monotonic())
    token = attach(set_value(_WHOLE, operation))
    try:
        yield operation
    except Exception as error:
        operation.error_type = type(error).__qualname__
        raise
    except BaseException:
        operation.finish_reason = "cancelled"
        raise
    finally:
        detach(token)
        operation.end()
        report(operation)


def measured(metrics: GenerateMetrics) -> None:
    """Add metrics to the operation that is reported as a whole here, if there is one."""
    operation = _whole(None)
    if operation is not None:
        operation.add(metrics)


def is_inside(model: object) -> bool:
    """Return whether this thread or task is in an operation of the model that is reported as a whole."""
    operation = _whole(None)
    return operation is not None and operation.owner is model


def _whole(context: Context | None) -> Operation | None:
    operation = get_value(_WHOLE, context)
    return operation if isinstance(operation, Operation) else None


def report(operation: Operation) -> None:
    """Create the span, and record the metrics. An error in this is logged, and does not fail the operation."""
    try:
        _record(operation, _span(operation))
    except Exception:
        import logging

        logging.getLogger("inference_bridge").exception("reporting an operation to OpenTelemetry failed")


def _span(operation: Operation) -> Context:
    """Create the span. Return the context in which it is current, which links the metrics to it as an exemplar."""
    span = _tracer.start_span(
        f"{operation.name} {operation.model}".rstrip(),
        operation.caller,
        SpanKind.CLIENT,
        {**_common(operation), **operation.asked},
        start_time=operation.ended - int(operation.seconds * 1e9),
    )
    if span.is_recording():
        span.set_attributes(_result_attributes(operation))
        if operation.error_type is not None:
            span.set_status(Status(StatusCode.ERROR))
    span.end(operation.ended)
    return trace.set_span_in_context(span, operation.caller)


def _record(operation: Operation, context: Context) -> None:
    common, metrics = _common(operation), operation.metrics
    error = {"error.type": operation.error_type} if operation.error_type else {}
    _duration.record(operation.seconds, common | error, context)
    if metrics.prompt_tokens:
        _usage.record(metrics.prompt_tokens, common | {"gen_ai.token.type": "input"}, context)
    if metrics.generated_tokens:
        _usage.record(metrics.generated_tokens, common | {"gen_ai.token.type": "output"}, context)
    if metrics.time_to_first_token and not error:
        _first_token.record(metrics.time_to_first_token, common, context)
    if metrics.generated_tokens > 1 and metrics.decode_seconds and not error:
        _per_token.record(metrics.decode_seconds / (metrics.generated_tokens - 1), common, context)


def _name_of(model: TextModel) -> str:
    if model._life.name is not None:
        return model._life.name
    try:
        return model.model_type
    except Exception:  # the backend asks its server, which does not answer
        return ""


def _common(operation: Operation) -> dict[str, Any]:
    common = {"gen_ai.operation.name": operation.name, "gen_ai.provider.name": operation.backend}
    return common | ({"gen_ai.request.model": operation.model} if operation.model else {})


def _asked(config: GenerateConfig) -> dict[str, Any]:
    """Return the attributes for the options that the caller set."""
    asked: dict[str, Any] = {"gen_ai.request.stream": True}
    for names, kind in ((_INT, int), (_DOUBLE, float)):
        for name in names:
            value = getattr(config, name)
            if value is not None and (name, value) != ("max_tokens", -1):
                asked[f"gen_ai.request.{name}"] = kind(value)
    if config.stop:
        asked["gen_ai.request.stop_sequences"] = list(config.stop)
    if config.json_schema is not None:
        asked["gen_ai.output.type"] = "json"
    return asked


def _result_attributes(operation: Operation) -> dict[str, Any]:
    """Return the attributes for the result."""
    metrics, attributes = operation.metrics, dict[str, Any]()
    if operation.finish_reason is not None:
        attributes["gen_ai.response.finish_reasons"] = [operation.finish_reason]
    if operation.error_type is not None:
        attributes["error.type"] = operation.error_type
    if metrics.prompt_tokens:  # 0 if it is not known
        attributes["gen_ai.usage.input_tokens"] = metrics.prompt_tokens
        attributes["gen_ai.usage.cache_read.input_tokens"] = metrics.cached_tokens
    if metrics.time_to_first_token:
        attributes["gen_ai.response.time_to_first_chunk"] = metrics.time_to_first_token
    if operation.name != "embeddings":
        attributes["gen_ai.usage.output_tokens"] = metrics.generated_tokens
    elif operation.answer:
        attributes["gen_ai.embeddings.dimension.count"] = len(operation.answer[0])
    return attributes
