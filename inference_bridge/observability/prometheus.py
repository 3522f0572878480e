# SPDX-License-Identifier: Apache-2.0
"""Statistics of models in Prometheus' text exposition format, version 0.0.4.

    from inference_bridge.observability import prometheus

    prometheus.exposition({"smollm2": model})  # the body of GET /metrics, with prometheus.CONTENT_TYPE

The format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import get_args

from ..errors import UnsupportedError
from ..interfaces import StatsModel
from ..stats import Distribution, GenerateStats
from ..types import FinishReason

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "inference_bridge_"

_COUNTERS: Mapping[str, tuple[str, Callable[[GenerateStats], float]]] = {
    "prompt_tokens_total": ("Prompt tokens, including reused ones.", lambda stats: stats.prompt_tokens),
    "cached_tokens_total": ("Prompt tokens reused from the prefix cache.", lambda stats: stats.cached_tokens),
    "generated_tokens_total": ("Generated tokens.", lambda stats: stats.generated_tokens),
    "drafted_tokens_total": ("Tokens guessed in speculative decoding.", lambda stats: stats.drafted_tokens),
    "accepted_tokens_total": ("Guessed tokens that were right.", lambda stats: stats.accepted_tokens),
}

_HISTOGRAMS: Mapping[str, tuple[str, Callable[[GenerateStats], Distribution]]] = {
    "time_to_first_token_seconds": (
        "Seconds from the start of an operation to its first token.",
        lambda stats: stats.time_to_first_token,
    ),
    "request_duration_seconds": (
        "Seconds from the start of an operation to its end.",
        lambda stats: stats.total_seconds,
    ),
    "prefill_tokens_per_second": (
        "Evaluated prompt tokens per second of prefill, for each operation.",
        lambda stats: stats.prefill_tokens_per_second,
    ),
    "decode_tokens_per_second": (
        "Tokens after the first per second of decoding, for each operation.",
        lambda stats: stats.decode_tokens_per_second,
    ),
}


def exposition(models: Mapping[str, StatsModel]) -> str:
    """Format the statistics of models for a /metrics endpoint.

    Args:
        models: Models by name. The name becomes the label "model".

    Returns:
        The text of the response.

    Raises:
        TypeError: `models` is not a mapping of str to models.
        UnsupportedError: A model keeps no statistics.
    """
    if not isinstance(models, Mapping):
        raise TypeError(f"models must be a mapping of names to models, not {type(models).__name__}")
    stats: dict[str, GenerateStats] = {}
    for name, model in models.items():
        if not isinstance(name, str):
            raise TypeError(f"a model's name must be a str, not {type(name).__name__}")
        if not isinstance(model, StatsModel):
            raise UnsupportedError("stats", getattr(model, "backend", "") or type(model).__name__)
        stats[name] = model.stats()
    return "".join(f"{line}\n" for line in _lines(stats))


def _lines(models: Mapping[str, GenerateStats]) -> Iterator[str]:
    yield from _family("requests_total", "counter", "Finished operations by finish reason.")
    for name, stats in models.items():
        ends: dict[str, int] = {reason: stats.finished.get(reason, 0) for reason in get_args(FinishReason)}
        for reason, count in (ends | {"error": stats.failed}).items():
            yield _sample("requests_total", count, model=name, finish_reason=reason)
    for metric, (text, total) in _COUNTERS.items():
        yield from _family(metric, "counter", text)
        for name, stats in models.items():
            yield _sample(metric, total(stats), model=name)
    yield from _family("peak_memory_bytes", "gauge", "Peak memory in use by the model's process or device.")
    for name, stats in models.items():
        yield _sample("peak_memory_bytes", stats.peak_memory_bytes, model=name)
    for metric, (text, distribution) in _HISTOGRAMS.items():
        distributions = {name: distribution(stats) for name, stats in models.items()}
        yield from _family(metric, "histogram", text)
        for name, one in distributions.items():
            yield from _histogram(metric, one, name)
        # From the buckets, a recent mean needs a query, and the largest value can't be known.
        yield from _family(f"{metric}_rolling_mean", "gauge", f"{text} Mean of recent operations.")
        for name, one in distributions.items():
            yield _sample(f"{metric}_rolling_mean", one.rolling_mean, model=name)
        yield from _family(f"{metric}_peak", "gauge", f"{text} Largest value.")
        for name, one in distributions.items():
            yield _sample(f"{metric}_peak", one.peak, model=name)


def _family(metric: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {_PREFIX}{metric} {text}"
    yield f"# TYPE {_PREFIX}{metric} {kind}"


def _histogram(metric: str, spread: Distribution, model: str) -> Iterator[str]:
    below = 0
    for bound, count in zip(spread.bounds, spread.counts, strict=False):
        below += count
        yield _sample(f"{metric}_bucket", below, model=model, le=f"{bound!r}")
    yield _sample(f"{metric}_bucket", spread.count, model=model, le="+Inf")
    yield _sample(f"{metric}_sum", spread.mean * spread.count, model=model)
    yield _sample(f"{metric}_count", spread.count, model=model)


def _sample(metric: str, value: float, **labels: str) -> str:
    pairs = ",".join(f'{name}="{_escaped(label)}"' for name, label in labels.items())
    return f"{_PREFIX}{metric}{{{pairs}}} {value!r}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
