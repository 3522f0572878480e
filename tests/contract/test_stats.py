# SPDX-License-Identifier: Apache-2.0
"""Statistics against the values themselves, which the recorder does not keep."""

from __future__ import annotations

import math
import sys
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_bridge.stats import _SECONDS, Distribution, GenerateStats, StatsRecorder
from inference_bridge.types import GenerateMetrics

seconds = st.floats(0.0, 5_000.0)


def _recorded(totals: list[float]) -> Distribution:
    recorder = StatsRecorder()
    for total in totals:
        recorder.record(GenerateMetrics(total_seconds=total), "stop")
    return recorder.stats().total_seconds


@given(st.lists(seconds, min_size=1, max_size=50))
def test_count_mean_peak_and_rolling_mean(totals: list[float]) -> None:
    distribution = _recorded(totals)
    assert distribution.count == len(totals)
    assert distribution.mean == pytest.approx(math.fsum(totals) / len(totals))
    assert distribution.peak == max(totals)
    rolling = totals[0]
    for total in totals[1:]:
        rolling = 0.9 * rolling + 0.1 * total
    assert distribution.rolling_mean == pytest.approx(rolling)


@given(st.lists(seconds, min_size=1, max_size=50), st.floats(0, 100))
def test_a_percentile_is_less_than_a_bucket_above_the_value(totals: list[float], percent: float) -> None:
    distribution = _recorded(totals)
    exact = sorted(totals)[max(math.ceil(len(totals) * percent / 100) - 1, 0)]
    found = distribution.percentile(percent)
    below = max((bound for bound in _SECONDS if bound < exact), default=0.0)
    above = next((bound for bound in _SECONDS if bound >= exact), distribution.peak)
    assert below <= exact <= found <= min(above, distribution.peak)


@given(st.lists(seconds, max_size=50))
def test_the_histogram_counts_every_value_in_its_bucket(totals: list[float]) -> None:
    distribution = _recorded(totals)
    edges = [-math.inf, *distribution.bounds, math.inf]
    expected = [sum(low < total <= high for total in totals) for low, high in pairwise(edges)]
    assert list(distribution.counts) == expected


def test_percentiles_rise_with_the_percentage() -> None:
    distribution = _recorded([0.01 * step for step in range(1, 200)])
    found = [distribution.percentile(percent) for percent in range(101)]
    assert found == sorted(found)
    assert found[100] == distribution.peak == 1.99


def test_statistics_without_operations() -> None:
    stats = StatsRecorder().stats()
    assert stats.operations == stats.failed == stats.total_seconds.count == 0
    assert stats.total_seconds.mean == stats.total_seconds.percentile(50) == 0.0
    assert GenerateStats().total_seconds.percentile(50) == 0.0


@pytest.mark.parametrize("percent", [-0.1, 100.1, math.nan])
def test_a_percentage_is_from_0_to_100(percent: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 100"):
        Distribution().percentile(percent)


def test_operations_are_counted_by_how_they_ended() -> None:
    recorder = StatsRecorder()
    metrics = GenerateMetrics(
        prompt_tokens=10,
        cached_tokens=4,
        generated_tokens=5,
        prefill_seconds=2.0,
        decode_seconds=1.0,
        total_seconds=3.0,
        time_to_first_token=2.0,
        peak_memory_bytes=100,
    )
    recorder.record(metrics, "stop")
    recorder.record(metrics, "stop")
    recorder.record(metrics, "cancelled")
    recorder.record(GenerateMetrics(total_seconds=0.5, peak_memory_bytes=300), None)
    stats = recorder.stats()
    assert (stats.operations, stats.failed) == (4, 1)
    assert stats.finished == {"stop": 2, "cancelled": 1}
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (30, 12, 15)
    assert stats.peak_memory_bytes == 300
    assert stats.total_seconds.count == 4
    assert stats.time_to_first_token.count == 3, "what generated nothing had no first token"
    assert stats.prefill_tokens_per_second.mean == 3.0
    assert stats.decode_tokens_per_second.mean == 4.0


def test_a_snapshot_does_not_change() -> None:
    recorder = StatsRecorder()
    recorder.record(GenerateMetrics(), "stop")
    before = recorder.stats()
    recorder.record(GenerateMetrics(), "stop")
    assert before.operations == 1
    assert before.finished == {"stop": 1}


def test_recording_from_many_threads_counts_every_operation() -> None:
    recorder = StatsRecorder()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:

        def record() -> None:
            for _ in range(500):
                recorder.record(GenerateMetrics(generated_tokens=2, total_seconds=1.0), "stop")

        threads = [threading.Thread(target=record) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    stats = recorder.stats()
    assert stats.operations == stats.finished["stop"] == sum(stats.total_seconds.counts) == 4000
    assert stats.generated_tokens == 8000
