# SPDX-License-Identifier: Apache-2.0
"""InferenceBridgeRerank as LangChain uses one, over a tiny random reranker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="the extra `langchain` is not installed")

from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document

from inference_bridge import UnsupportedError, load_model
from langchain_inference_bridge import InferenceBridgeRerank

from ...parts.models.tiny import Words
from ...parts.models.tiny_gguf import write_embedding

TEXTS = ["a dog ran", "the cat sat on the mat", "red house"]
DOCUMENTS = [Document(text, metadata={"place": place}) for place, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with load_model(f"llama_cpp:{write_embedding(tmp_path_factory.mktemp('rank') / 'rank.gguf', pooling=4)}") as model:
        yield model


async def test_documents_are_compressed_to_the_best(model: Any) -> None:
    rerank = InferenceBridgeRerank(text_model=model, top_n=2)
    assert isinstance(rerank, BaseDocumentCompressor)
    found = rerank.compress_documents(DOCUMENTS, "the cat")
    expected = model.rerank("the cat", TEXTS)[:2]
    assert [one.metadata["place"] for one in found] == [one.index for one in expected]
    assert [one.metadata["relevance_score"] for one in found] == pytest.approx([one.score for one in expected])
    assert "relevance_score" not in DOCUMENTS[0].metadata
    assert await rerank.acompress_documents(DOCUMENTS, "the cat") == found
    assert len(InferenceBridgeRerank(text_model=model).compress_documents(DOCUMENTS, "the cat")) == 3


def test_pairs_are_scored_in_their_order(model: Any) -> None:
    encoder = InferenceBridgeRerank(text_model=model)
    assert isinstance(encoder, BaseCrossEncoder)
    pairs = [("the cat", TEXTS[0]), ("a dog", TEXTS[1]), ("the cat", TEXTS[2])]
    alone = [model.rerank(query, [text])[0].score for query, text in pairs]
    assert encoder.score(pairs) == pytest.approx(alone, abs=1e-5)


def test_a_model_that_does_not_rank() -> None:
    with pytest.raises(UnsupportedError, match="rerank"):
        InferenceBridgeRerank(text_model=Words()).score([("a", "b")])
