# SPDX-License-Identifier: Apache-2.0
"""InferenceBridgeEmbeddings: LangChain's standard tests on a tiny random model, and further tests."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.load import dumpd, dumps, load
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import ValidationError

from inference_bridge import (
    ContextLengthExceededError,
    EmbeddingModel,
    ModelInfo,
    Request,
    ServerError,
    TextModel,
    Token,
    UnsupportedError,
)
from inference_bridge._concurrency.background import MAX_THREADS
from langchain_inference_bridge import InferenceBridgeEmbeddings

from ...parts.models.tiny import Words
from ...parts.models.tiny_gguf import WIDTH, write_embedding

CAT, DOG, COLOURS = "the cat sat on the mat", "a small dog ran to the house", "red and blue"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedding(tmp_path_factory.mktemp("models") / "bert.gguf")


@pytest.fixture(scope="module")
def params(path: Path) -> Iterator[dict[str, Any]]:
    """The constructor's arguments; the model stays loaded."""
    params: dict[str, Any] = {"model": f"llama_cpp:{path}", "threads": 1}
    with InferenceBridgeEmbeddings(**params) as embeddings:
        embeddings.load()
        yield params
        gc.collect()


@pytest.fixture
def embeddings(params: dict[str, Any]) -> InferenceBridgeEmbeddings:
    return InferenceBridgeEmbeddings(**params)


class _Standard:
    embeddings_class = InferenceBridgeEmbeddings
    embedding_model_params: dict[str, Any] = {}  # noqa: RUF012 - LangChain's is a property

    @pytest.fixture(autouse=True)
    def _made_from(self, params: dict[str, Any]) -> None:
        self.embedding_model_params = params


class TestUnit(_Standard, EmbeddingsUnitTests):
    pass


class TestIntegration(_Standard, EmbeddingsIntegrationTests):
    pass


# ---------------------------------------------------------------- on a real model


def near(vectors: Sequence[Sequence[float]]) -> Any:
    return pytest.approx(np.array(vectors), abs=1e-5)


async def test_vectors_are_the_models(embeddings: InferenceBridgeEmbeddings) -> None:
    model = embeddings.load()
    assert isinstance(model, EmbeddingModel)
    vectors = model.embed([CAT, DOG])
    assert [len(vector) for vector in vectors] == [WIDTH, WIDTH]
    expected = near(vectors)
    assert np.array(embeddings.embed_documents([CAT, DOG])) == expected
    assert np.array(await embeddings.aembed_documents([CAT, DOG])) == expected
    assert np.array([embeddings.embed_query(CAT), await embeddings.aembed_query(DOG)]) == expected
    assert embeddings.embed_documents([]) == await embeddings.aembed_documents([]) == []


async def test_a_vector_store_finds_the_nearest_text(embeddings: InferenceBridgeEmbeddings) -> None:
    store = InMemoryVectorStore(embeddings)
    await store.aadd_texts([CAT, DOG, COLOURS])
    (found,) = store.similarity_search("is the cat on the mat", k=1)
    assert found.page_content == CAT
    (found,) = await store.asimilarity_search("blue and red", k=1)
    assert found.page_content == COLOURS


async def test_many_at_once_share_a_few_threads(embeddings: InferenceBridgeEmbeddings) -> None:
    expected = near([embeddings.embed_query(DOG)] * 32)
    before = threading.active_count()
    tasks = [asyncio.create_task(embeddings.aembed_query(DOG)) for _ in range(32)]
    await asyncio.sleep(0)
    assert threading.active_count() <= before + MAX_THREADS
    assert np.array(await asyncio.gather(*tasks)) == expected


def test_errors_are_the_contracts(embeddings: InferenceBridgeEmbeddings) -> None:
    with pytest.raises(ContextLengthExceededError):
        embeddings.embed_documents([CAT, "the " * 100])
    with pytest.raises(TypeError, match=r"texts\[1\] must be a str, not int"):
        embeddings.embed_documents([CAT, 3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="texts must be an iterable of str"):
        embeddings.embed_documents(CAT)  # type: ignore[arg-type]


def test_a_prefix_goes_before_each_text(params: dict[str, Any], embeddings: InferenceBridgeEmbeddings) -> None:
    prefixed = InferenceBridgeEmbeddings(**params, query_prefix="red ", document_prefix="blue ")
    assert np.array([prefixed.embed_query(CAT)]) == near([embeddings.embed_query(f"red {CAT}")])
    assert np.array(prefixed.embed_documents([DOG])) == near(embeddings.embed_documents([f"blue {DOG}"]))


def test_objects_with_equal_fields_share_one_model(path: Path) -> None:
    fields: dict[str, Any] = {"model": f"llama_cpp:{path}", "threads": 1, "context_length": 32}
    first, second = InferenceBridgeEmbeddings(**fields), InferenceBridgeEmbeddings(**fields, query_prefix="the ")
    model = first.load()
    assert second.load() is model
    first.close()
    assert not model.closed
    second.close()
    assert model.closed
    assert len(first.embed_query(CAT)) == WIDTH  # loaded again
    first.close()


# ---------------------------------------------------------------- what it is made from


class Failing(TextModel):
    """Fails the given number of times before it embeds. Records the texts."""

    info = ModelInfo()
    capabilities = frozenset({"embeddings"})

    def __init__(self, failures: Sequence[ServerError] = ()) -> None:
        self.failures = list(failures)
        self.texts: list[Sequence[str]] = []

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.texts.append(texts)
        if self.failures:
            raise self.failures.pop(0)
        return [[float(len(text))] for text in texts]

    async def aembed(self, texts: Sequence[str]) -> list[list[float]]:
        return self.embed(texts)

    def _run(self, request: Request) -> Iterator[Token]:
        raise NotImplementedError

    def close(self) -> None:
        pass


async def test_a_temporary_failure_of_a_server_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    pause = InferenceBridgeEmbeddings._pause
    monkeypatch.setattr(InferenceBridgeEmbeddings, "_pause", lambda *given: 0 * pause(*given))
    busy = ServerError("busy", status=503)

    def failing(times: int) -> InferenceBridgeEmbeddings:
        return InferenceBridgeEmbeddings(text_model=Failing([busy] * times), max_retries=2)

    assert failing(2).embed_query("ab") == [2.0]
    assert await failing(2).aembed_documents(["a", "abc"]) == [[1.0], [3.0]]
    with pytest.raises(ServerError, match="busy"):
        failing(3).embed_query("ab")
    with pytest.raises(ServerError, match="busy"):
        await failing(3).aembed_query("ab")


async def test_a_model_that_generates_is_refused() -> None:
    embeddings = InferenceBridgeEmbeddings(text_model=Words())
    with pytest.raises(UnsupportedError, match="Words does not support embeddings with this model: tiny generates"):
        embeddings.embed_query("a")
    with pytest.raises(UnsupportedError, match="embeddings"):
        await embeddings.aembed_documents(["a"])


def test_a_given_model_is_not_closed() -> None:
    model = Failing()
    with InferenceBridgeEmbeddings(text_model=model) as embeddings:
        assert embeddings.load() is model
        assert embeddings.embed_query("abc") == [3.0]
    assert not model.closed


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "set either model"),
        ({"model": "x", "contxt_length": 1}, "no field 'contxt_length': did you mean 'context_length'"),
        ({"model": "x", "temperature": 1}, "no field 'temperature'"),
        ({"model": "x", "context_length": -1}, "context_length must be at least 0"),
        ({"text_model": Failing(), "threads": 1}, "threads is an option for loading a model"),
        ({"model": "x", "api_key": ["hush"]}, "api_key"),
    ],
)
def test_wrong_fields_are_refused_by_the_constructor(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem) as caught:
        InferenceBridgeEmbeddings(**fields)
    assert "hush" not in str(caught.value)


SECRET: dict[str, Any] = {"model": "x", "api_key": "hush", "headers": {"authorization": "hush"}, "query_prefix": "q: "}


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_serialised_without_secrets() -> None:
    embeddings = InferenceBridgeEmbeddings(**SECRET)
    assert not [text for text in (repr(embeddings), dumps(embeddings)) if "hush" in text]
    assert dumpd(embeddings)["kwargs"] == {
        "model": "x",
        "query_prefix": "q: ",
        "api_key": {"lc": 1, "type": "secret", "id": ["INFERENCE_BRIDGE_API_KEY"]},
        "headers": {"lc": 1, "type": "secret", "id": ["INFERENCE_BRIDGE_HEADERS"]},
    }
    again = load(
        json.loads(dumps(embeddings)),
        allowed_objects=[InferenceBridgeEmbeddings],
        valid_namespaces=["langchain_inference_bridge"],
        secrets_map={"INFERENCE_BRIDGE_API_KEY": "hush", "INFERENCE_BRIDGE_HEADERS": {"authorization": "hush"}},  # type: ignore[dict-item]
    )
    assert again == embeddings
    assert again.load_config() == embeddings.load_config()
    assert dumpd(InferenceBridgeEmbeddings(text_model=Failing()))["type"] == "not_implemented"
