# SPDX-License-Identifier: Apache-2.0
"""Ranking on a real llama-server, and answers that are not rankings."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

import inference_bridge as ib
from inference_bridge.backends.http.scoring.ranking import ranking

from ...parts.models.tiny_gguf import write_embedding, write_llama
from ...parts.servers.fault_server import reply, serving
from ...parts.servers.processes import llama_server

USER = ib.Message("user", "a")
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


def test_a_reranker_s_vectors_need_not_be_readable() -> None:
    """llama-server's are memory that nothing has written: now and then they have NaN in them, which is null in JSON."""
    vectors = {"data": [{"index": 0, "embedding": [None, 1e-39]}]}
    ranking = {"results": [{"index": 0, "relevance_score": 0.5}]}
    with (
        serving({"/v1/embeddings": [reply(vectors)], "/v1/rerank": [reply(ranking)]}) as server,
        ib.load_model(server.address) as model,
    ):
        assert isinstance(model, ib.RankModel)
        assert model.rerank("a", ["b"]) == [ib.Ranked(0, 0.5)]


def test_an_embedding_model_that_can_t_generate_says_so_at_the_call(tmp_path: Path) -> None:
    path = write_embedding(tmp_path / "bert.gguf")
    with llama_server(path, embedding=True, length=64) as address, ib.load_model(address) as model:
        assert model.capabilities == {"embeddings", "stats"}
        calls: list[tuple[Any, Any]] = [(model.generate, "a"), (model.agenerate, "a"), (model.chat, [USER])]
        for call, given in calls:
            with pytest.raises(ib.UnsupportedError, match=r"use embed\(\)"):
                call(given)


def test_a_model_that_generates_and_makes_embeddings_does_both(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "llama.gguf", pooling=1)
    with llama_server(path, embedding=True, length=64) as address, ib.load_model(address) as model:
        assert isinstance(model, ib.EmbeddingModel)
        assert len(model.embed(["a"])) == 1
        assert model.generate("a", max_tokens=1).result().tokens


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"results": [{"index": 0}]},
        {"results": [{"index": 0, "relevance_score": "much"}]},
        {"results": [{"index": 0, "relevance_score": 1.0}, {"index": 1, "relevance_score": math.nan}]},
        {"results": [{"index": 0, "relevance_score": 1.0}]},
        {"results": [{"index": 0, "relevance_score": 1.0}, {"index": 2, "relevance_score": 1.0}]},
    ],
    ids=str,
)
def test_a_malformed_ranking_is_a_server_error(answer: Any) -> None:
    with pytest.raises(ib.ServerError):
        ranking(answer, 2)
