# SPDX-License-Identifier: Apache-2.0
"""Embedding models on llama.cpp: one that the tests build, which knows eighteen words."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inference_bridge import (
    ContextLengthExceededError,
    EmbeddingModel,
    GenerationError,
    LoadConfig,
    ModelClosedError,
    ModelLoadError,
    TextModel,
    UnsupportedError,
)
from inference_bridge.backends.llama_cpp import library
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend

from ...parts.leaks import threads_since
from ...parts.models.tiny_gguf import WIDTH, write_embedding, write_llama

TEXTS = ["the cat sat on the mat", "a small dog ran to the house", "red and blue", "the big cat is in the house"]


def load(path: Path, config: LoadConfig | None = None) -> TextModel:
    return LlamaCppBackend().load_model(str(path), config or LoadConfig(threads=1))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextModel]:
    with load(write_embedding(tmp_path_factory.mktemp("models") / "bert.gguf")) as loaded:
        yield loaded


def embed(model: TextModel, texts: list[str]) -> np.ndarray:
    assert isinstance(model, EmbeddingModel)
    return np.array(model.embed(texts))


def test_it_is_an_embedding_model(model: TextModel, demo_model_path: Path) -> None:
    assert isinstance(model, EmbeddingModel)
    assert model.capabilities == {"embeddings", "stats"}
    assert (model.model_type, model.info.hidden_size, model.info.context_length) == ("bert", WIDTH, 64)
    with load(demo_model_path, LoadConfig(context_length=256)) as generator:
        assert not isinstance(generator, EmbeddingModel)
        assert "embeddings" not in generator.capabilities


def test_vectors_have_length_one_and_follow_the_words(model: TextModel) -> None:
    vectors = embed(model, TEXTS)
    assert vectors.shape == (4, WIDTH)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1] * 4)
    near, far = embed(model, ["the cat sat in the house", "blue and red"])
    likeness = vectors @ near
    assert likeness.argmax() in (0, 3)
    assert (vectors @ far).argmax() == 2


def test_mean_pooling_is_used_if_the_file_states_it(tmp_path: Path) -> None:
    with (
        load(write_embedding(tmp_path / "mean.gguf", pooling=1)) as mean,
        load(write_embedding(tmp_path / "cls.gguf", pooling=2)) as first,
    ):
        assert not np.allclose(embed(mean, TEXTS), embed(first, TEXTS), atol=0.01)


def test_a_model_that_reads_from_left_to_right(tmp_path: Path) -> None:
    """Unlike BERT it has a memory of the text it has read, which must not reach the vector of another text."""
    with load(write_llama(tmp_path / "last.gguf", pooling=3)) as model:
        once, other, again = (embed(model, [text])[0] for text in (TEXTS[0], TEXTS[1], TEXTS[0]))
        assert again == pytest.approx(once, abs=1e-6)
        assert not np.allclose(once, other, atol=0.01)
        together = embed(model, [TEXTS[1], TEXTS[0]])
        assert together == pytest.approx(np.array([other, once]), abs=1e-3)
        assert model.count_tokens("abc") == 3
        with pytest.raises(ValueError, match=r"texts\[1\] is empty, and this model adds no token of its own"):
            embed(model, ["a", ""])


def test_a_batch_that_llama_cpp_fails_on(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = embed(model, TEXTS)
    with monkeypatch.context() as failing:
        failing.setattr(library.lib, "llama_decode", lambda *_: -3)
        with pytest.raises(GenerationError, match=r"evaluating .*bert.gguf failed \(llama_decode returned -3\)"):
            embed(model, TEXTS)
    assert embed(model, TEXTS) == pytest.approx(expected)


def test_vectors_of_many_texts_equal_those_of_single_texts(model: TextModel) -> None:
    many = [f"{TEXTS[number % 4]} {'the ' * (number % 30)}" for number in range(150)]
    together = embed(model, many)
    alone = np.array([embed(model, [text])[0] for text in many])
    assert together == pytest.approx(alone, abs=1e-5)
    assert embed(model, []).shape == (0,)


async def test_async_and_many_at_once(model: TextModel) -> None:
    assert isinstance(model, EmbeddingModel)
    expected = embed(model, TEXTS)
    for vectors in await asyncio.gather(*[model.aembed(TEXTS) for _ in range(8)]):
        assert np.array(vectors) == pytest.approx(expected, abs=1e-5)


def test_metrics(model: TextModel) -> None:
    before = model.stats().operations  # type: ignore[attr-defined]
    embed(model, ["the cat", "the dog"])
    assert model.metrics.prompt_tokens == 8  # each between CLS and SEP
    assert model.metrics.prefill_seconds > 0
    assert model.stats().operations == before + 1  # type: ignore[attr-defined]
    assert model.count_tokens("the cat") == 2


def test_unsupported_operations_are_refused(model: TextModel, tmp_path: Path) -> None:
    with pytest.raises(ContextLengthExceededError):
        embed(model, ["fine", "the " * 100])
    with pytest.raises(TypeError, match=r"texts\[1\]"):
        embed(model, ["the", 3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="texts"):
        embed(model, "the cat")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="text must be a str, not int"):
        model.count_tokens(3)  # type: ignore[arg-type]
    for call in (
        lambda: model.generate("the"),
        lambda: model.chat([{"role": "user", "content": "the"}]),
        lambda: model.classify(["the"]),
        lambda: model.batch_generate(["the"]),
    ):
        with pytest.raises(UnsupportedError, match="embed"):
            call()
    path = write_embedding(tmp_path / "bert.gguf")
    with pytest.raises(UnsupportedError, match="chat_template"):
        load(path, LoadConfig(chat_template="{{ messages }}"))
    with pytest.raises(ModelLoadError, match="can't make a context of 64 tokens .*n_seq_max"):
        load(path, LoadConfig(extra={"n_seq_max": 100_000}))


def test_close(tmp_path: Path) -> None:
    before = threading.enumerate()
    model = load(write_embedding(tmp_path / "bert.gguf"))
    embed(model, TEXTS)
    model.close()
    assert threads_since(before) == []
    with pytest.raises(ModelClosedError):
        embed(model, TEXTS)


async def test_a_text_that_is_too_long_is_named_or_truncated(tmp_path: Path) -> None:
    """Tokens that the model needs after a text are kept: the vector equals that of the longest text that fits."""
    with load(write_embedding(tmp_path / "bert.gguf"), LoadConfig(context_length=16)) as model:
        texts = ["the cat", "dog " * 40]
        with pytest.raises(ContextLengthExceededError, match=r"texts\[1\]"):
            model.embed(texts)  # type: ignore[attr-defined]
        short, cut = model.embed(texts, truncate=True)  # type: ignore[attr-defined]
        around = len(model._encode(["dog"], False)[0]) - 1  # type: ignore[attr-defined]
        (fits,) = model.embed(["dog " * (16 - around)])  # type: ignore[attr-defined]
        assert cut == pytest.approx(fits, abs=1e-6)
        assert short == pytest.approx(model.embed(["the cat"])[0], abs=1e-6)  # type: ignore[attr-defined]
        assert await model.aembed(texts, truncate=True) == [short, cut]  # type: ignore[attr-defined]
