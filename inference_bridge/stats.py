# SPDX-License-Identifier: Apache-2.0
"""Statistics of all operations of a model since it was loaded, for dashboards.

Histograms have fixed bounds: recording a value costs one bisection, and memory does not grow.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

from .types import FinishReason, GenerateMetrics

_ROLLING_WEIGHT = 0.1
"""Weight of the newest value in the exponential rolling mean. The weight of a value halves every seven values."""

_SECONDS = tuple(round(0.001 * 2 ** (step / 2), 6) for step in range(40))
_RATES = tuple(round(0.1 * 2 ** (step / 2), 4) for step in range(40))
"""Upper bounds of the buckets: 1 ms to 12 minutes, and 0.1 to 74,000 tokens per second, in steps of √2."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """The distribution of one measure.

    Attributes:
        count: Number of values.
        mean: Mean of all values.
        rolling_mean: Exponential mean, in which recent values weigh more.
        peak: Largest value.
        bounds: Upper bounds of the histogram's buckets.
        counts: Number of values in each bucket. The last one counts the values above all bounds.
    """

    count: int = 0
    mean: float = 0.0
    rolling_mean: float = 0.0
    peak: float = 0.0
    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    def percentile(self, percent: float) -> float:
        """Return the upper bound of the bucket that holds a percentile.

        Args:
            percent: From 0 to 100.

        Returns:
            The bound, at most `peak`; 0.0 if no value was recorded.

        Raises:
            ValueError: `percent` is not from 0 to 100.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"percent must be from 0 to 100, not {percent}")
        seen, wanted = 0, self.count * percent / 100
        for bound, count in zip(self.bounds, self.counts, strict=False):
            seen += count
            if count and seen >= wanted:
                return min(bound, self.peak)
        return self.peak


@dataclass(frozen=True, slots=True)
class GenerateStats:
    """Statistics of all operations of a model since it was loaded.

    `finished` counts operations by finish reason, and `failed` counts those that ended with an error. Token
    counts are totals. The distributions are in seconds and in tokens per second.
    """

    operations: int = 0
    failed: int = 0
    finished: Mapping[FinishReason, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    peak_memory_bytes: int = 0
    time_to_first_token: Distribution = Distribution()
    total_seconds: Distribution = Distribution()
    prefill_tokens_per_second: Distribution = Distribution()
    decode_tokens_per_second: Distribution = Distribution()


class _Histogram:
    __slots__ = ("bounds", "count", "counts", "peak", "rolling", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.count = 0
        self.total = self.peak = self.rolling = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.rolling = value if not self.count else self.rolling + _ROLLING_WEIGHT * (value - self.rolling)
        self.count += 1
        self.total += value
        self.peak = max(self.peak, value)

    def snapshot(self) -> Distribution:
        mean = self.total / self.count if self.count else 0.0
        return Distribution(self.count, mean, self.rolling, self.peak, self.bounds, tuple(self.counts))


class StatsRecorder:
    """Adds up operations as they end. Thread-safe."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector may run inside `record`, where it records a dropped stream.
        self._lock = threading.RLock()
        self._finished: dict[FinishReason, int] = {}
        self._operations = self._failed = self._prompt = self._cached = self._generated = self._memory = 0
        self._drafted = self._accepted = 0
        self._first = _Histogram(_SECONDS)
        self._total = _Histogram(_SECONDS)
        self._prefill = _Histogram(_RATES)
        self._decode = _Histogram(_RATES)

    def record(self, metrics: GenerateMetrics, finish_reason: FinishReason | None) -> None:
        """Count one operation. A `finish_reason` of None means that it failed."""
        with self._lock:
            self._operations += 1
            if finish_reason is None:
                self._failed += 1
            else:
                self._finished[finish_reason] = self._finished.get(finish_reason, 0) + 1
            self._prompt += metrics.prompt_tokens
            self._cached += metrics.cached_tokens
            self._generated += metrics.generated_tokens
            self._drafted += metrics.drafted_tokens
            self._accepted += metrics.accepted_tokens
            self._memory = max(self._memory, metrics.peak_memory_bytes)
            self._total.add(metrics.total_seconds)
            if metrics.generated_tokens:
                self._first.add(metrics.time_to_first_token)
            if metrics.prefill_tokens_per_second:
                self._prefill.add(metrics.prefill_tokens_per_second)
            if metrics.decode_tokens_per_second:
                self._decode.add(metrics.decode_tokens_per_second)

    def stats(self) -> GenerateStats:
        """Return the statistics so far."""
        with self._lock:
            return GenerateStats(
                operations=self._operations,
                failed=self._failed,
                finished=dict(self._finished),
                prompt_tokens=self._prompt,
                cached_tokens=self._cached,
                generated_tokens=self._generated,
                drafted_tokens=self._drafted,
                accepted_tokens=self._accepted,
                peak_memory_bytes=self._memory,
                time_to_first_token=self._first.snapshot(),
                total_seconds=self._total.snapshot(),
                prefill_tokens_per_second=self._prefill.snapshot(),
                decode_tokens_per_second=self._decode.snapshot(),
            )
