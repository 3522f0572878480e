# SPDX-License-Identifier: Apache-2.0
"""/v1/rerank, over a tiny random reranker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import inference_bridge as ib

from ...parts.models.tiny_gguf import write_embedding
from ...parts.servers.answering import Everything
from ..conftest import running

DOCUMENTS = ["a dog ran", "the cat sat on the mat", "red house"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path: Path = write_embedding(tmp_path_factory.mktemp("rank") / "rank.gguf", pooling=4)
    with ib.load_model(f"llama_cpp:{path}") as model:
        yield model


@pytest.fixture(scope="module")
def address(model: Any) -> Iterator[str]:
    with running({"rank": model, "everything": Everything()}) as at:
        yield at


def asking(address: str, **body: Any) -> httpx2.Response:
    right = {"model": "rank", "query": "the cat", "documents": DOCUMENTS}
    return httpx2.post(f"{address}/v1/rerank", json=right | body)


def test_the_best_comes_first(model: Any, address: str) -> None:
    answer = asking(address).json()
    assert answer["model"] == "rank"
    expected = [{"index": one.index, "relevance_score": one.score} for one in model.rerank("the cat", DOCUMENTS)]
    assert answer["results"] == [
        {"index": one["index"], "relevance_score": pytest.approx(one["relevance_score"], abs=1e-5)} for one in expected
    ]


def test_the_first_results_with_their_documents(address: str) -> None:
    documents = [{"text": text} for text in DOCUMENTS]
    results = asking(address, documents=documents, top_n=2, return_documents=True).json()["results"]
    assert len(results) == 2
    assert all(one["document"] == documents[one["index"]] for one in results)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"query": None}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["x", 3]}, "documents"),
        ({"documents": [{"text": "x", "title": "y"}]}, "documents"),
        ({"top_n": 0}, "top_n"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_field_that_is_wrong_is_named(address: str, body: Any, param: str) -> None:
    answer = asking(address, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_model_that_does_not_rank(address: str) -> None:
    answer = asking(address, model="everything")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unsupported"


def test_a_document_that_is_too_long(address: str) -> None:
    answer = asking(address, documents=["x", "cat " * 100])
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert "documents[1]" in answer.json()["error"]["message"]
