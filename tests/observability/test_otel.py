# SPDX-License-Identifier: Apache-2.0
"""Spans and metrics of operations, recorded by the OpenTelemetry SDK."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics as metrics_api
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import inference_bridge as ib
from inference_bridge import _telemetry
from inference_bridge.observability import otel
from tests.parts.models.tiny import AsyncWaits, AsyncWords, Tiny, Waits, Words, WordsBackend, until
from tests.parts.models.tiny_gguf import write_embedding

DURATION = "gen_ai.client.operation.duration"

pytestmark = pytest.mark.usefixtures("no_thread_stays")


class Heard:
    """The data given to the application's exporters."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.traces = TracerProvider()
        self.traces.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.metrics = MeterProvider([self.reader])
        self.tracer = self.traces.get_tracer("the application")

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        """Of the library; the application's own are left out."""
        return tuple(
            span
            for span in self.exporter.get_finished_spans()
            if span.instrumentation_scope is not None and span.instrumentation_scope.name == "inference_bridge"
        )

    @property
    def span(self) -> ReadableSpan:
        (span,) = self.spans
        return span

    def told(self) -> dict[str, Any]:
        return dict(self.span.attributes or {})

    def tokens_by_caller(self) -> dict[str, Any]:
        """The number of tokens of the call in each of the application's spans."""
        callers = {span.context.span_id: span.name for span in self.exporter.get_finished_spans() if span.context}
        return {
            callers[span.parent.span_id]: (span.attributes or {})["gen_ai.usage.output_tokens"]
            for span in self.spans
            if span.parent
        }

    def points(self, name: str, model: str) -> list[HistogramDataPoint]:
        data = self.reader.get_metrics_data()
        assert data is not None
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
            if isinstance(point, HistogramDataPoint) and (point.attributes or {}).get("gen_ai.request.model") == model
        ]


@pytest.fixture(scope="module")
def providers() -> Iterator[Heard]:
    """The application's: OpenTelemetry lets them be set once in a process."""
    heard = Heard()
    trace.set_tracer_provider(heard.traces)
    metrics_api.set_meter_provider(heard.metrics)
    yield heard
    heard.traces.shutdown()
    heard.metrics.shutdown()


@pytest.fixture
def heard(providers: Heard) -> Heard:
    gc.collect()
    providers.exporter.clear()
    return providers


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Iterator[ib.TextModel]:
    with ib.load_model(demo_model_path, backend="llama_cpp", context_length=512, threads=1) as model:
        yield model


def named(model: Tiny, name: str) -> Tiny:
    model.model_type = name
    return model


# ---------------------------------------------------------------- a real model


def test_a_chat(model: ib.TextModel, heard: Heard) -> None:
    begun = time.time_ns()
    with heard.tracer.start_as_current_span("the caller") as parent:
        stream = model.chat(
            [ib.Message("user", "What is the capital of France?")],
            max_tokens=4,
            temperature=0.5,
            top_k=3,
            top_p=0.9,
            seed=7,
            stop=["\n\n"],
            presence_penalty=0.1,
            frequency_penalty=0.2,
        )
    text = stream.text()  # not within the caller's span any more
    span, metrics = heard.span, stream.metrics

    name = "SmolLM2-135M-Instruct.Q4_1"
    assert (span.name, span.kind) == (f"chat {name}", SpanKind.CLIENT)
    assert span.parent == parent.get_span_context()
    assert span.status.status_code is StatusCode.UNSET
    assert span.start_time is not None
    assert span.end_time is not None
    assert begun <= span.start_time < span.end_time <= time.time_ns()
    assert heard.told() == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llama_cpp",
        "gen_ai.request.model": name,
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.seed": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_k": 3.0,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.presence_penalty": 0.1,
        "gen_ai.request.frequency_penalty": 0.2,
        "gen_ai.request.stop_sequences": ("\n\n",),
        "gen_ai.response.finish_reasons": (stream.finish_reason,),
        "gen_ai.response.time_to_first_chunk": metrics.time_to_first_token,
        "gen_ai.usage.input_tokens": metrics.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": metrics.cached_tokens,
        "gen_ai.usage.output_tokens": metrics.generated_tokens,
    }
    assert metrics.prompt_tokens > 20
    assert text
    assert not span.events
    assert not [value for value in heard.told().values() if "France" in str(value) or text in str(value)]


def test_its_metrics(model: ib.TextModel, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "measured"  # records of other tests remain
    monkeypatch.setattr(model._life, "name", name)

    def sums(metric: str) -> dict[tuple[Any, ...], tuple[int, float]]:
        return {
            tuple(sorted((point.attributes or {}).items())): (point.count, point.sum)
            for point in heard.points(metric, name)
        }

    common = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "llama_cpp",
        "gen_ai.request.model": name,
    }
    stream = model.generate("One, two, three,", max_tokens=3)
    assert stream.text()
    metrics = stream.metrics
    span = heard.span
    assert span.context is not None
    (duration,) = heard.points(DURATION, name)
    assert duration.attributes == common
    assert [example.span_id for example in duration.exemplars] == [span.context.span_id]
    assert duration.sum == pytest.approx(((span.end_time or 0) - (span.start_time or 0)) / 1e9, rel=1e-3)
    key = tuple(sorted(common.items()))
    assert sums("gen_ai.server.time_to_first_token") == {key: (1, metrics.time_to_first_token)}
    assert sums("gen_ai.server.time_per_output_token") == {key: (1, metrics.decode_seconds / 2)}
    usage = sums("gen_ai.client.token.usage")
    assert usage[tuple(sorted({**common, "gen_ai.token.type": "input"}.items()))] == (1, metrics.prompt_tokens)
    assert usage[tuple(sorted({**common, "gen_ai.token.type": "output"}.items()))] == (1, 3)
    (point, *_) = heard.points("gen_ai.client.token.usage", name)
    assert list(point.explicit_bounds)[:3] == [1, 4, 16]
    assert len(point.explicit_bounds) == 14


async def test_a_coroutines_chat(model: ib.TextModel, heard: Heard) -> None:
    async def ask(number: int) -> str:
        with heard.tracer.start_as_current_span(f"caller {number}"):
            return await model.achat([ib.Message("user", "Count.")], max_tokens=2 + number).text()

    await asyncio.gather(ask(1), ask(2))
    assert heard.tokens_by_caller() == {"caller 1": 3, "caller 2": 4}


def test_json_that_was_asked_for(model: ib.TextModel, heard: Heard) -> None:
    assert model.generate("A number: ", json_schema={"type": "integer"}, max_tokens=2).text()
    assert heard.told()["gen_ai.output.type"] == "json"


def test_a_batch_is_a_span_a_prompt_under_the_call(model: ib.TextModel, heard: Heard) -> None:
    with heard.tracer.start_as_current_span("the caller") as parent:
        batch = model.stream_batch((f"{number}," for number in range(6)), max_tokens=2)
    with heard.tracer.start_as_current_span("the reader"):
        assert len(list(batch)) == 12
    assert [span.parent for span in heard.spans] == [parent.get_span_context()] * 6
    assert {span.name for span in heard.spans} == {"text_completion SmolLM2-135M-Instruct.Q4_1"}


def test_a_prompt_that_is_too_long(model: ib.TextModel, heard: Heard) -> None:
    with pytest.raises(ib.ContextLengthExceededError):
        model.generate("one " * 600).text()
    told, span = heard.told(), heard.span
    assert told["error.type"] == "ContextLengthExceededError"
    assert "gen_ai.response.finish_reasons" not in told
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    name = "SmolLM2-135M-Instruct.Q4_1"
    errors = [(point.attributes or {}).get("error.type") for point in heard.points(DURATION, name)]
    assert errors.count("ContextLengthExceededError") == 1


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_classifying_is_one_operation(mode: str, model: ib.TextModel, heard: Heard) -> None:
    prompts, labels = ["The sky is", "The sea is", "Grass is"], [" blue", " green"]
    with heard.tracer.start_as_current_span("the caller") as parent:
        if mode == "sync":
            model.classify(prompts, labels=labels)
        else:
            asyncio.run(model.aclassify(prompts, labels=labels))
    assert heard.span.parent == parent.get_span_context()
    assert heard.span.name == "text_completion SmolLM2-135M-Instruct.Q4_1"
    told = heard.told()
    assert told["gen_ai.usage.input_tokens"] >= sum(map(model.count_tokens, prompts))
    assert "gen_ai.response.time_to_first_chunk" not in told


async def test_classify_of_a_model_without_its_own_implementation(heard: Heard) -> None:
    Words().classify(["a b", "c d"])
    await Words().aclassify(["a b"])
    assert [(span.attributes or {})["gen_ai.usage.output_tokens"] for span in heard.spans] == [2, 1]
    with pytest.raises(ib.GenerationError):
        Fails().classify(["a"], max_tokens=2)
    assert (heard.spans[-1].attributes or {})["error.type"] == "GenerationError"


class AsksAnother(Words):
    """A model that wraps one, as an adapter's."""

    def classify(self, *args: Any, **kwargs: Any) -> list[ib.ClassifyResult]:
        named(Words(), "another").generate("a b").text()
        return super().classify(*args, **kwargs)


def test_concurrent_operations_of_another_model_are_recorded_separately(heard: Heard) -> None:
    AsksAnother().classify(["a"])
    assert [span.name for span in heard.spans] == ["text_completion another", "text_completion tiny"]
    assert [(span.attributes or {})["gen_ai.usage.output_tokens"] for span in heard.spans] == [2, 1]


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize("kind", [Words, AsyncWords])
def test_both_kinds_of_backend(kind: type[Tiny], heard: Heard) -> None:
    with kind() as model:
        assert model.generate("a b c").text() == "a b c"
    told = heard.told()
    assert told == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": kind.__name__,
        "gen_ai.request.model": "tiny",
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": told["gen_ai.response.time_to_first_chunk"],
        "gen_ai.usage.output_tokens": 3,  # the prompt's tokens are not reported
    }


@pytest.mark.parametrize("kind", [Waits, AsyncWaits])
def test_a_stream_that_is_closed(kind: type[Waits], heard: Heard) -> None:
    with kind() as model, model.generate("a b") as stream:
        assert next(stream).text == "a"
        assert not heard.spans
    assert heard.told()["gen_ai.response.finish_reasons"] == ("cancelled",)
    assert heard.told()["gen_ai.usage.output_tokens"] == 1
    assert heard.span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("kind", [Waits, AsyncWaits])
def test_a_stream_that_is_dropped(kind: type[Waits], heard: Heard) -> None:
    model = kind()
    with heard.tracer.start_as_current_span("the caller") as parent:
        stream = model.generate("a b")
        next(stream)
        del stream
    until(lambda: len(heard.spans) == 1)
    assert heard.span.parent == parent.get_span_context()
    assert heard.told()["gen_ai.response.finish_reasons"] == ("cancelled",)
    model.close()


async def test_a_stream_that_is_dropped_by_a_coroutine(heard: Heard) -> None:
    model = Waits()
    stream = model.agenerate("a b")
    await anext(stream)
    del stream
    until(lambda: len(heard.spans) == 1)
    assert heard.told()["gen_ai.response.finish_reasons"] == ("cancelled",)
    model.close()


def test_a_batch_that_is_dropped_in_a_cycle(heard: Heard) -> None:
    """The collector may come while the SDK holds its locks: it must not wait for them."""
    model = Waits()
    model.parallel = 2
    batch: Any = model.stream_batch(["a", "b", "c"])
    next(batch)
    batch.cycle = batch
    del batch
    with heard.exporter._lock:  # as while another span is exported
        gc.collect()
    until(lambda: len(heard.spans) == 2)
    model.close()


async def test_a_task_that_is_cancelled(heard: Heard) -> None:
    model = AsyncWaits()

    async def read() -> None:
        async for _ in model.agenerate("a"):
            pass

    task = asyncio.create_task(read())
    await asyncio.to_thread(model.waiting.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard.told()["gen_ai.response.finish_reasons"] == ("cancelled",)
    model.close()


@pytest.mark.parametrize("kind", [Waits, AsyncWaits])
def test_a_timeout(kind: type[Waits], heard: Heard) -> None:
    with kind() as model, pytest.raises(ib.GenerationTimeoutError):
        model.generate("a", timeout=0.01).text()
    assert heard.told()["error.type"] == "GenerationTimeoutError"
    assert heard.span.status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("kind", [Waits, AsyncWaits])
def test_a_model_that_is_closed(kind: type[Waits], heard: Heard) -> None:
    model = kind()
    stream = model.generate("a")
    next(stream)

    def close() -> None:
        model.waiting.wait()
        model.close()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(ib.ModelClosedError):
        next(stream)
    closer.join()
    assert heard.told()["error.type"] == "ModelClosedError"


class Fails(Tiny):
    def _run(self, request: ib.Request) -> Iterator[ib.Token]:
        yield ib.Token("a")
        raise ValueError(f"can't do {request.prompt}")


def test_an_engine_that_fails(heard: Heard) -> None:
    with pytest.raises(ib.GenerationError, match="a secret"):
        named(Fails(), "fails").generate("a secret").text()
    told = heard.told()
    assert told["error.type"] == "GenerationError"
    assert told["gen_ai.usage.output_tokens"] == 1
    assert "secret" not in heard.span.to_json()
    (point,) = heard.points(DURATION, "fails")
    assert (point.attributes or {})["error.type"] == "GenerationError"
    assert not heard.points("gen_ai.server.time_to_first_token", "fails")


def test_operations_that_did_not_begin_or_were_refused_have_no_span(heard: Heard) -> None:
    model = Words()
    model.generate("a")
    with pytest.raises(ib.UnsupportedError):
        model.generate("a", top_k=3)
    model.close()
    with pytest.raises(ib.ModelClosedError):
        model.generate("a")
    assert not heard.spans


def test_a_forked_childs_copy_is_the_parents_to_report(heard: Heard) -> None:
    model = Waits()
    batch = model.stream_batch(["a"])
    next(batch)
    (request,) = batch._active.values()
    request._pid = -1
    _telemetry.finished(model, request)
    assert not heard.spans
    request._pid = os.getpid()
    batch.close()
    assert heard.told()["gen_ai.response.finish_reasons"] == ("cancelled",)


def test_unlimited_max_tokens_has_no_attribute(heard: Heard) -> None:
    Words().generate("a", max_tokens=-1).text()
    assert "gen_ai.request.max_tokens" not in heard.told()


def test_many_threads(heard: Heard) -> None:
    model = Words()

    def ask(number: int) -> None:
        with heard.tracer.start_as_current_span(str(number)):
            model.generate(" ".join(["a"] * number)).text()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard.tokens_by_caller() == {str(number): number for number in range(1, 9)}


# ---------------------------------------------------------------- embeddings


class Embeds(Words):
    capabilities = frozenset({"embeddings"})

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Doc."""
        if "fail" in texts:
            raise ib.GenerationError("failed at fail")
        return [[0.0, 1.0]] * len(texts)

    async def aembed(self, texts: Sequence[str]) -> list[list[float]]:
        await asyncio.sleep(0)
        return self.embed(texts)


class EmbedsMore(Embeds):
    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return super().embed(texts)


class Mixin:
    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[1.0]]


class Mixed(Mixin, Words):
    pass


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = write_embedding(tmp_path_factory.mktemp("embeddings") / "small.gguf")
    with ib.load_model(path, backend="llama_cpp", threads=1) as model:
        yield model


def test_embeddings(embedder: Any, heard: Heard) -> None:
    with heard.tracer.start_as_current_span("the caller") as parent:
        vectors = embedder.embed(["the cat", "a small dog"])
    assert heard.span.parent == parent.get_span_context()
    assert heard.span.name == "embeddings small"
    assert heard.told() == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "llama_cpp",
        "gen_ai.request.model": "small",
        "gen_ai.usage.input_tokens": embedder.metrics.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.embeddings.dimension.count": len(vectors[0]),
    }
    (point,) = heard.points("gen_ai.client.token.usage", "small")
    assert (point.sum, (point.attributes or {})["gen_ai.token.type"]) == (embedder.metrics.prompt_tokens, "input")


async def test_embeddings_of_coroutines(embedder: Any, heard: Heard) -> None:
    texts = [["the cat"], ["a small dog ran to the house"]]
    await asyncio.gather(*map(embedder.aembed, texts))
    counted = {(span.attributes or {})["gen_ai.usage.input_tokens"] for span in heard.spans}
    assert len(counted) == 2  # each its own


@pytest.mark.parametrize("kind", [Embeds, EmbedsMore, Mixed])
def test_embeddings_of_any_author_once(kind: Any, heard: Heard) -> None:
    assert kind().embed(["a"])[0]
    assert heard.span.name == "embeddings tiny"


class EmbedsForEver(Embeds):
    async def aembed(self, texts: Sequence[str]) -> list[list[float]]:
        await asyncio.Event().wait()
        return []


async def test_embeddings_that_are_cancelled(heard: Heard) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(EmbedsForEver().aembed(["a"]), 0.001)
    assert heard.told()["gen_ai.response.finish_reasons"] == ("cancelled",)
    assert "error.type" not in heard.told()


def test_measurements_outside_of_embed_are_not_part_of_an_operation(heard: Heard) -> None:
    model = Words()
    model._measured(ib.GenerateMetrics(prompt_tokens=3))
    assert model.metrics.prompt_tokens == 3
    assert not heard.spans


def test_embeddings_that_fail(heard: Heard) -> None:
    with pytest.raises(ib.GenerationError):
        Embeds().embed(["fail"])
    assert heard.told()["error.type"] == "GenerationError"
    assert heard.span.status.status_code is StatusCode.ERROR
    assert "failed at" not in heard.span.to_json()


def test_an_authors_method_keeps_its_name_and_docstring() -> None:
    assert (Embeds.embed.__name__, Embeds.embed.__doc__) == ("embed", "Doc.")
    assert isinstance(Embeds(), ib.EmbeddingModel)


# ---------------------------------------------------------------- names


@pytest.fixture
def words() -> Iterator[WordsBackend]:
    backend = WordsBackend()
    ib.register(backend)
    yield backend
    ib.unregister("words")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("words:maker/big-one", "maker/big-one"),
        ("http://user:secret@host:1/v1", ""),
        ("mine", "mine"),
        ("{folder}/file.gguf", "file"),
        ("{folder}/weights/", "weights"),
    ],
)
def test_names_of_models_in_spans(
    source: str, name: str, words: WordsBackend, heard: Heard, tmp_path: Path, home: Path
) -> None:
    (tmp_path / "file.gguf").touch()
    (tmp_path / "weights").mkdir()
    settings = home / ".config" / "inference-bridge" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text('[models.mine]\nsource = "words:something"\n')
    with ib.load_model(
        source.format(folder=tmp_path), backend=None if source.startswith("words:") else "words"
    ) as model:
        model.generate("a").text()
    assert heard.told().get("gen_ai.request.model", "") == name
    assert heard.span.name == f"text_completion {name}".rstrip()
    assert "secret" not in heard.span.to_json()


def test_a_model_without_info_is_recorded(heard: Heard) -> None:
    class Unknown(Words):
        @property
        def model_type(self) -> str:  # type: ignore[override]
            raise ib.ServerError("the server is gone")

    assert Unknown().generate("a").text() == "a"
    assert heard.span.name == "text_completion"


# ---------------------------------------------------------------- faults


def test_failures_of_the_sdk_are_logged_and_do_not_fail_the_operation(
    heard: Heard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a processor of the application's")

    monkeypatch.setattr(otel._tracer, "start_span", fails)
    with caplog.at_level(logging.ERROR, "inference_bridge"):
        assert Words().generate("a b").text() == "a b"
    assert "reporting an operation to OpenTelemetry failed" in caplog.text
