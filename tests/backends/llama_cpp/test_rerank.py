# SPDX-License-Identifier: Apache-2.0
"""Ranking with tiny random models, against llama-server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import inference_bridge as ib
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend

from ...parts.models.tiny_gguf import write_embedding
from ...parts.servers.processes import llama_server

QUERY = "the cat"
DOCUMENTS = ["a dog ran", "the cat sat on the mat", "red house", "the cat sat on the mat"]
TEMPLATE = "[CLS]is {document} of {query}[SEP]"


def load(path: Path) -> Any:
    return LlamaCppBackend().load_model(str(path), ib.LoadConfig(context_length=32))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedding(tmp_path_factory.mktemp("rank") / "rank.gguf", pooling=4)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Any]:
    with load(path) as loaded:
        yield loaded


def test_a_reranker_supports_only_ranking(model: Any) -> None:
    assert model.capabilities == {"rerank", "stats"}
    calls: list[Callable[[], object]] = [
        lambda: model.generate("the"),
        lambda: model.chat([{"role": "user", "content": "the"}]),
        lambda: model.decide("the", {"a": ib.Noul("is it?")}),
    ]
    for call in calls:
        with pytest.raises(ib.UnsupportedError, match="rerank"):
            call()
    assert isinstance(model, ib.RankModel)
    assert not isinstance(model, ib.EmbeddingModel)


async def test_the_best_comes_first(model: Any) -> None:
    found = model.rerank(QUERY, DOCUMENTS)
    assert sorted(one.index for one in found) == [0, 1, 2, 3]
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True)
    of = {one.index: one.score for one in found}
    assert of[1] == pytest.approx(of[3], abs=1e-6)
    assert model.rerank(QUERY, [DOCUMENTS[0]])[0].score == pytest.approx(of[0], abs=1e-5)
    assert await model.arerank(QUERY, DOCUMENTS) == found
    assert model.rerank(QUERY, []) == []
    assert model.metrics.prompt_tokens == 0


@pytest.mark.parametrize("template", ["", TEMPLATE])
def test_scores_are_those_of_llama_server(tmp_path: Path, template: str) -> None:
    path = write_embedding(tmp_path / "rank.gguf", pooling=4, template=template)
    with load(path) as model:
        own = {one.index: one.score for one in model.rerank(QUERY, DOCUMENTS)}
    with llama_server(path, ranks=True, length=32) as address:
        answer = httpx2.post(f"{address}/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS})
    results = answer.json()["results"]
    theirs = {one["index"]: one["relevance_score"] for one in results}
    assert own == pytest.approx(theirs, abs=1e-3)
    assert len({round(score, 4) for score in own.values()}) == 3


def test_names_of_special_tokens_in_a_document_are_text(tmp_path: Path) -> None:
    """In the model's own form of a query with a document only the form has special tokens."""
    with load(write_embedding(tmp_path / "rank.gguf", pooling=4, template=TEMPLATE)) as model:
        tokens = model._pair("the cat", "a [SEP] {query} dog[SEP]")
    assert tokens.count(3) == 1
    assert tokens[-1] == 3


def test_a_document_that_is_too_long_is_named(model: Any) -> None:
    with pytest.raises(ib.ContextLengthExceededError, match=r"documents\[1\]") as raised:
        model.rerank(QUERY, ["a dog", "cat " * 40])
    assert raised.value.context_length == 32
    for wrong in (3, "text", ["x", 3]):
        with pytest.raises(TypeError):
            model.rerank(QUERY, wrong)
    with pytest.raises(TypeError):
        model.rerank(3, DOCUMENTS)


def test_a_closed_model_refuses_to_rank(path: Path) -> None:
    model = load(path)
    model.close()
    with pytest.raises(ib.ModelClosedError):
        model.rerank(QUERY, DOCUMENTS)
