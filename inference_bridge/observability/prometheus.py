# SPDX-License-Identifier: Apache-2.0
"""What models' statistics are to Prometheus: its text exposition format, version 0.0.4.

    from inference_bridge.observability import prometheus

    prometheus.exposition({"smollm2": model})  # answer GET /metrics with it, as prometheus.CONTENT_TYPE

The format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import get_args

from ..errors import UnsupportedError
from ..model import StatsModel
from ..stats import Distribution, GenerateStats
from ..types import FinishReason

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "inference_bridge_"

_COUNTERS: Mapping[str, tuple[str, Callable[[GenerateStats], float]]] = {
    "prompt_tokens_total": ("Tokens of prompts, reused ones included.", lambda stats: stats.prompt_tokens),
    "cached_tokens_total": ("Tokens of prompts that were reused, not evaluated.", lambda stats: stats.cached_tokens),
    "generated_tokens_total": ("Tokens generated.", lambda stats: stats.generated_tokens),
}

_HISTOGRAMS: Mapping[str, tuple[str, Callable[[GenerateStats], Distribution]]] = {
    "time_to_first_token_seconds": ("From the start to the first token.", lambda stats: stats.time_to_first_token),
    "request_duration_seconds": ("From the start to the end.", lambda stats: stats.total_seconds),
    "prefill_tokens_per_second": (
        "Prompt tokens evaluated, per second of prefill, in each operation.",
        lambda stats: stats.prefill_tokens_per_second,
    ),
    "decode_tokens_per_second": (
        "Tokens after the first, per second of decoding, in each operation.",
        lambda stats: stats.decode_tokens_per_second,
    ),
}


def exposition(models: Mapping[str, StatsModel]) -> str:
    """The statistics of `models` as text for a /metrics endpoint; each one's key is its label "model".

    Raises TypeError where `models` is no such mapping, UnsupportedError for a model without statistics.
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
    yield from _family("requests_total", "counter", "Operations that have ended, by why they did.")
    for name, stats in models.items():
        ends: dict[str, int] = {reason: stats.finished.get(reason, 0) for reason in get_args(FinishReason)}
        for reason, count in (ends | {"error": stats.failed}).items():
            yield _sample("requests_total", count, model=name, finish_reason=reason)
    for metric, (told, total) in _COUNTERS.items():
        yield from _family(metric, "counter", told)
        for name, stats in models.items():
            yield _sample(metric, total(stats), model=name)
    yield from _family("peak_memory_bytes", "gauge", "The most memory that the model's process, or device, had in use.")
    for name, stats in models.items():
        yield _sample("peak_memory_bytes", stats.peak_memory_bytes, model=name)
    for metric, (told, distribution) in _HISTOGRAMS.items():
        spread = {name: distribution(stats) for name, stats in models.items()}
        yield from _family(metric, "histogram", told)
        for name, one in spread.items():
            yield from _histogram(metric, one, name)
        # What the buckets don't tell: a mean that needs no query, and the extreme.
        yield from _family(f"{metric}_rolling_mean", "gauge", f"{told} The mean of recent operations.")
        for name, one in spread.items():
            yield _sample(f"{metric}_rolling_mean", one.rolling_mean, model=name)
        yield from _family(f"{metric}_peak", "gauge", f"{told} The greatest of all.")
        for name, one in spread.items():
            yield _sample(f"{metric}_peak", one.peak, model=name)


def _family(metric: str, kind: str, told: str) -> Iterator[str]:
    yield f"# HELP {_PREFIX}{metric} {told}"
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
    said = ",".join(f'{name}="{_escaped(label)}"' for name, label in labels.items())
    return f"{_PREFIX}{metric}{{{said}}} {value!r}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
