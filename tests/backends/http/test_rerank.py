# SPDX-License-Identifier: Apache-2.0
"""Ranking on a real llama-server, and answers that are not rankings."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import inference_bridge as ib
from inference_bridge.backends.http.scoring.ranking import ranking

from ...parts.models.tiny_gguf import write_embedding
from ...parts.servers.processes import llama_server

DOCUMENTS = ["a dog ran", "the cat sat on the mat", "red house"]


def test_a_reranker_on_llama_server_ranks_as_in_process(tmp_path: Path) -> None:
    path = write_embedding(tmp_path / "rank.gguf", pooling=4)
    with ib.load_model(f"llama_cpp:{path}") as model:
        assert isinstance(model, ib.RankModel)
        expected = {one.index: one.score for one in model.rerank("the cat", DOCUMENTS)}
    with llama_server(path, ranks=True, length=64) as address, ib.load_model(address) as model:
        assert model.capabilities == {"rerank", "stats"}
        assert isinstance(model, ib.RankModel)
        assert not isinstance(model, ib.EmbeddingModel)
        for found in (model.rerank("the cat", DOCUMENTS), asyncio.run(model.arerank("the cat", DOCUMENTS))):
            assert {one.index: one.score for one in found} == pytest.approx(expected, abs=1e-3)
            assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
        assert model.rerank("the cat", []) == []
        with pytest.raises(TypeError):
            model.rerank("the cat", "text")
        with pytest.raises(ib.GenerationError):
            model.rerank("the cat", ["cat " * 200])


def test_an_embedding_model_on_llama_server_stays_one(tmp_path: Path) -> None:
    path = write_embedding(tmp_path / "bert.gguf")
    with llama_server(path, embedding=True, length=64) as address, ib.load_model(address) as model:
        assert isinstance(model, ib.EmbeddingModel)
        assert not isinstance(model, ib.RankModel)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"results": [{"index": 0}]},
        {"results": [{"index": 0, "relevance_score": "much"}]},
        {"results": [{"index": 0, "relevance_score": 1.0}]},
        {"results": [{"index": 0, "relevance_score": 1.0}, {"index": 2, "relevance_score": 1.0}]},
    ],
    ids=str,
)
def test_an_answer_that_is_no_ranking(answer: Any) -> None:
    with pytest.raises(ib.ServerError):
        ranking(answer, 2)
