# SPDX-License-Identifier: Apache-2.0
"""The exposition format, read by Prometheus's client library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import inference_bridge as ib
from inference_bridge.observability import prometheus
from inference_bridge.stats import StatsRecorder
from tests.parts.models.tiny import Words


class Counted:
    """As many statistics as are recorded."""

    def __init__(self) -> None:
        self.recorder = StatsRecorder()

    def stats(self) -> ib.GenerateStats:
        return self.recorder.stats()


def read(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    assert text.endswith("\n")
    return {
        (sample.name.removeprefix("inference_bridge_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text: str, metric: str, **labels: str) -> float:
    return read(text)[metric, frozenset(labels.items())]


@pytest.fixture
def counted() -> Counted:
    counted = Counted()
    for seconds, reason in ((0.5, "stop"), (2.0, "stop"), (1000.0, "length")):
        metrics = ib.GenerateMetrics(
            prompt_tokens=10,
            cached_tokens=4,
            generated_tokens=5,
            prefill_seconds=0.25,
            decode_seconds=0.5,
            total_seconds=seconds,
            time_to_first_token=0.25,
            peak_memory_bytes=int(seconds),
        )
        counted.recorder.record(metrics, reason)  # type: ignore[arg-type]
    counted.recorder.record(ib.GenerateMetrics(prompt_tokens=1, total_seconds=0.5), None)
    return counted


def test_counts(counted: Counted) -> None:
    text = prometheus.exposition({"m": counted})
    reasons = {"stop": 2, "length": 1, "tool_calls": 0, "cancelled": 0, "error": 1}
    assert {reason: value(text, "requests_total", model="m", finish_reason=reason) for reason in reasons} == reasons
    assert value(text, "prompt_tokens_total", model="m") == 31
    assert value(text, "cached_tokens_total", model="m") == 12
    assert value(text, "generated_tokens_total", model="m") == 15
    assert value(text, "peak_memory_bytes", model="m") == 1000


def test_histograms(counted: Counted) -> None:
    text = prometheus.exposition({"m": counted})
    buckets = {
        dict(labels)["le"]: count
        for (name, labels), count in read(text).items()
        if name == "request_duration_seconds_bucket"
    }
    assert len(buckets) == len(counted.stats().total_seconds.bounds) + 1
    assert list(buckets.values()) == sorted(buckets.values())
    assert (buckets["0.362039"], buckets["0.512"], buckets["2.048"], buckets["+Inf"]) == (0, 2, 3, 4)
    assert list(buckets)[-1] == "+Inf"
    assert list(buckets.values())[-2] == 3  # 1,000 seconds are above every bound
    assert value(text, "request_duration_seconds_sum", model="m") == pytest.approx(1003.0)
    assert value(text, "request_duration_seconds_count", model="m") == 4
    assert value(text, "time_to_first_token_seconds_count", model="m") == 3
    assert value(text, "prefill_tokens_per_second_sum", model="m") == pytest.approx(3 * 6 / 0.25)
    assert value(text, "decode_tokens_per_second_sum", model="m") == pytest.approx(3 * 4 / 0.5)


def test_means_and_peaks(counted: Counted) -> None:
    text = prometheus.exposition({"m": counted})
    assert value(text, "decode_tokens_per_second_rolling_mean", model="m") == pytest.approx(8.0)
    assert value(text, "request_duration_seconds_peak", model="m") == 1000.0
    spread = counted.stats().total_seconds
    assert value(text, "request_duration_seconds_rolling_mean", model="m") == pytest.approx(spread.rolling_mean)


def test_the_kinds_are_declared_once_before_their_samples(counted: Counted) -> None:
    text = prometheus.exposition({"m": counted, "n": counted})
    kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert len(kinds) == text.count("# TYPE ") == text.count("# HELP ")  # none is torn in two
    assert set(kinds.values()) == {"counter", "gauge", "histogram"}
    assert kinds["inference_bridge_time_to_first_token_seconds"] == "histogram"
    assert "unknown" not in kinds.values()


def test_names_of_models_are_escaped(counted: Counted) -> None:
    names = ["plain", 'quo"ted', "back\\slash", "new\nline", "naïve", "back\\new"]
    text = prometheus.exposition({name: Counted() for name in names} | {"plain": counted})
    assert {name: value(text, "prompt_tokens_total", model=name) for name in names} == {
        name: 31 if name == "plain" else 0 for name in names
    }


def test_a_model_without_operations_has_zeros() -> None:
    text = prometheus.exposition({"m": Counted()})
    assert value(text, "request_duration_seconds_bucket", model="m", le="+Inf") == 0
    assert value(text, "request_duration_seconds_sum", model="m") == 0
    assert set(read(text).values()) == {0}


def test_no_models_give_an_empty_text() -> None:
    assert not read(prometheus.exposition({}))


def test_arguments_without_statistics_are_refused() -> None:
    with pytest.raises(ib.UnsupportedError, match="Words does not support stats"):
        prometheus.exposition({"m": Words()})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="models must be a mapping of names to models, not list"):
        prometheus.exposition([Counted()])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a model's name must be a str, not int"):
        prometheus.exposition({1: Counted()})  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Iterator[ib.TextModel]:
    with ib.load_model(demo_model_path, backend="llama_cpp", context_length=256, threads=1) as model:
        yield model


def test_a_real_model(model: ib.TextModel) -> None:
    assert isinstance(model, ib.StatsModel)
    stream = model.generate("One, two,", max_tokens=3)
    assert stream.text()
    text = prometheus.exposition({"smollm2": model})
    assert value(text, "requests_total", model="smollm2", finish_reason="length") == 1
    assert value(text, "generated_tokens_total", model="smollm2") == 3
    assert value(text, "prompt_tokens_total", model="smollm2") == stream.metrics.prompt_tokens
    first = value(text, "time_to_first_token_seconds_sum", model="smollm2")
    assert first == pytest.approx(stream.metrics.time_to_first_token)
