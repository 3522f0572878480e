# SPDX-License-Identifier: Apache-2.0
"""Random embedding models on MLX, compared with the same computation in numpy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import inference_bridge as ib
from inference_bridge.catalog.single import look_at
from tests.parts.models.mlx_embedding import LAST, Vectors, hidden_states, write_embedding_model
from tests.parts.models.mlx_tiny import WIDTH, write_tiny_mlx

TEXTS = ["The quick brown fox", "jumps", "over the lazy dog. Once upon a time there was a king", "a 3"]
ARCHITECTURES = ["llama", "bert", "xlm-roberta", "gemma3_text"]


def embed(model: Any, texts: Sequence[str], **options: Any) -> Vectors:
    assert isinstance(model, ib.EmbeddingModel)
    return np.array(model.embed(texts, **options))


def unit(vector: Vectors) -> Vectors:
    return vector / np.linalg.norm(vector)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedding_model(tmp_path_factory.mktemp("models") / request.param, architecture=request.param)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[ib.TextModel]:
    with ib.load_model(path, backend="mlx") as model:
        yield model


def test_discovery_finds_an_embedding_model(path: Path, model: ib.TextModel) -> None:
    found = look_at(str(path))
    assert found is not None
    assert (found.embeddings, found.problem, found.format) == (True, None, "mlx")
    assert model.capabilities == {"embeddings", "stats"}
    assert (model.model_type, model.info.hidden_size, model.info.context_length) == (path.name, WIDTH, 64)


def test_directories_of_modules_are_not_models(tmp_path: Path) -> None:
    write_embedding_model(tmp_path / "m", dense="Tanh")
    assert [(found.name, found.problem) for found in ib.discover(tmp_path)] == [("m", None)]


def test_vectors_are_the_mean_of_the_hidden_states(path: Path, model: Any) -> None:
    for text, vector in zip(TEXTS, embed(model, TEXTS), strict=True):
        assert vector == pytest.approx(unit(hidden_states(path, model._ids(text)).mean(axis=0)), abs=2e-5), text


def test_other_texts_and_padding_do_not_change_a_vector(model: ib.TextModel) -> None:
    texts = [f"{TEXTS[number % 4]} {'lazy ' * (number % 17)}" for number in range(70)]
    together = embed(model, texts)
    alone = np.array([embed(model, [text])[0] for text in texts])
    assert together == pytest.approx(alone, abs=1e-5)
    assert embed(model, texts[::-1])[::-1] == pytest.approx(together, abs=1e-5)


async def test_a_text_that_is_too_long_is_named_or_truncated(path: Path, model: Any) -> None:
    texts = ["the", "dog " * 200, "a"]
    with pytest.raises(ib.ContextLengthExceededError, match=r"texts\[1\]") as raised:
        model.embed(texts)
    assert raised.value.context_length == 64
    vectors = embed(model, texts, truncate=True)
    cut = model._shortened(texts[1], model._ids(texts[1]))
    assert (len(cut), cut[-1]) == (64, model._ids("the")[-1]), "what the model wants behind a text stays"
    assert vectors[1] == pytest.approx(unit(hidden_states(path, cut).mean(axis=0)), abs=2e-5)
    assert np.array(await model.aembed(texts, truncate=True)) == pytest.approx(vectors, abs=1e-6)


def test_tokens_are_counted(model: Any) -> None:
    around = len(model._ids(""))
    assert model.count_tokens("The quick") == len(model._ids("The quick")) - around
    assert model.count_tokens("") == 0
    before = model.stats().operations
    embed(model, ["The", "the king"])
    assert model.metrics.prompt_tokens == sum(len(model._ids(text)) for text in ("The", "the king"))
    assert (model.stats().operations, model.metrics.prefill_seconds > 0) == (before + 1, True)
    assert model.metrics.peak_memory_bytes >= model.metrics.active_memory_bytes > 0


def test_names_of_special_tokens_in_a_text_are_text(model: Any) -> None:
    assert model._ids(f"a {LAST}").count(model._ids("")[-1]) == 1


WAYS: dict[str, Callable[[Vectors], Vectors]] = {
    "cls_token": lambda states: states[0],
    "lasttoken": lambda states: states[-1],
    "mean_tokens": lambda states: states.mean(axis=0),
    "max_tokens": lambda states: states.max(axis=0),
    "mean_sqrt_len_tokens": lambda states: states.sum(axis=0) / math.sqrt(len(states)),
    "weightedmean_tokens": lambda states: np.average(states, axis=0, weights=range(1, len(states) + 1)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_pooling_follows_the_files(way: str, architecture: str, tmp_path: Path) -> None:
    """Without a Normalize module vectors keep their length."""
    path = write_embedding_model(tmp_path / "m", architecture=architecture, pooling=way, normalize=False)
    with ib.load_model(path, backend="mlx") as model:
        vectors = embed(model, TEXTS)
        for text, vector in zip(TEXTS, vectors, strict=True):
            states = hidden_states(path, model._ids(text))  # type: ignore[attr-defined]
            assert vector == pytest.approx(WAYS[way](states), abs=1e-4), text


def test_several_ways_are_joined_and_a_dense_layer_follows(tmp_path: Path) -> None:
    path = write_embedding_model(tmp_path / "both", pooling=["mean_tokens", "cls_token"])
    with ib.load_model(path, backend="mlx") as model:
        assert model.info.hidden_size == 2 * WIDTH
        states = hidden_states(path, model._ids(TEXTS[0]))  # type: ignore[attr-defined]
        joined = np.concatenate([states[0], states.mean(axis=0)])
        assert embed(model, TEXTS[:1])[0] == pytest.approx(unit(joined), abs=2e-5)
    path = write_embedding_model(tmp_path / "dense", dense="Tanh")
    layer = load_file(path / "2_Dense" / "model.safetensors")
    with ib.load_model(path, backend="mlx") as model:
        assert model.info.hidden_size == 24
        mean = hidden_states(path, model._ids(TEXTS[0])).mean(axis=0)  # type: ignore[attr-defined]
        expected = np.tanh(mean @ layer["linear.weight"].T + layer["linear.bias"])
        assert embed(model, TEXTS[:1])[0] == pytest.approx(unit(expected), abs=2e-5)


def test_a_long_text_is_evaluated_in_chunks(tmp_path: Path) -> None:
    path = write_embedding_model(tmp_path / "m", context_length=512)
    texts = ["the lazy dog " * 60, TEXTS[0]]
    with (
        ib.load_model(path, backend="mlx", batch_size=16) as small,
        ib.load_model(path, backend="mlx", batch_size=512) as large,
    ):
        assert embed(small, texts) == pytest.approx(embed(large, texts), abs=1e-5)


def test_weights_without_a_head_are_loaded(tmp_path: Path) -> None:
    whole = write_embedding_model(tmp_path / "whole")
    bare = write_embedding_model(tmp_path / "bare", headless=True, config={"tie_word_embeddings": False})
    with ib.load_model(whole, backend="mlx") as one, ib.load_model(bare, backend="mlx") as other:
        assert embed(one, TEXTS) == pytest.approx(embed(other, TEXTS), abs=1e-6)


def test_the_files_bound_a_text_lower_it_and_prompt_for_it(tmp_path: Path) -> None:
    sentence = {"max_seq_length": 20, "do_lower_case": True}
    prompts = {"prompts": {"document": "a king: "}, "default_prompt_name": "document"}
    path = write_embedding_model(tmp_path / "m", sentence=sentence, prompts=prompts)
    plain = write_embedding_model(tmp_path / "plain")
    with ib.load_model(path, backend="mlx") as model, ib.load_model(plain, backend="mlx") as other:
        assert model.info.context_length == 20
        assert embed(model, ["The FOX"]) == pytest.approx(embed(other, ["a king: the fox"]), abs=1e-6)
    with ib.load_model(path, backend="mlx", context_length=40) as model:
        assert model.info.context_length == 40
    with pytest.raises(ib.ModelLoadError, match="context_length=65 is more than the 64"):
        ib.load_model(path, backend="mlx", context_length=65)


def test_pooling_can_be_set_for_a_model_whose_files_do_not_state_it(tmp_path: Path) -> None:
    """A text-generation model computes embeddings on request; an encoder always does."""
    generator = write_tiny_mlx(tmp_path / "generator")
    found = look_at(str(generator))
    assert found is not None
    assert not found.embeddings
    with ib.load_model(generator, backend="mlx", extra={"pooling": "last"}) as model:
        states = hidden_states(generator, model._ids(TEXTS[0]))  # type: ignore[attr-defined]
        assert embed(model, TEXTS[:1])[0] == pytest.approx(unit(states[-1]), abs=2e-5)
        with pytest.raises(ValueError, match=r"texts\[0\] is empty"):
            embed(model, [""])
    encoder = write_embedding_model(tmp_path / "encoder", architecture="bert", modules=False)
    with pytest.raises(ib.UnsupportedError, match="pooling"):
        ib.load_model(encoder, backend="mlx")
    with ib.load_model(encoder, backend="mlx", extra={"pooling": "cls"}) as model:
        states = hidden_states(encoder, model._ids(TEXTS[0]))  # type: ignore[attr-defined]
        assert embed(model, TEXTS[:1])[0] == pytest.approx(unit(states[0]), abs=2e-5)


def _module(path: Path, kind: str) -> None:
    listed = json.loads((path / "modules.json").read_text())
    listed[-1]["type"] = f"sentence_transformers.models.{kind}"
    (path / "modules.json").write_text(json.dumps(listed))


def test_invalid_pooling_files_are_refused(tmp_path: Path) -> None:
    def refused(match: str, name: str, **how: Any) -> Path:
        path = write_embedding_model(tmp_path / name, **how)
        if name.startswith("module "):
            _module(path, name.removeprefix("module "))
        with pytest.raises(ib.ModelLoadError, match=match):
            ib.load_model(path, backend="mlx")
        return path

    refused("LSTM", "module LSTM")
    refused("pooling_mode_other", "way", pooling="other")
    refused("states no way to pool", "none", pooling=[])
    refused("SiLU", "activation", dense="SiLU")
    refused("no prompt 'x'", "prompt", prompts={"default_prompt_name": "x", "prompts": {}})
    refused("hidden_act|activation", "act", architecture="bert", config={"hidden_act": "silu"})
    refused("relative positions", "relative", architecture="bert", config={"position_embedding_type": "relative_key"})
    path = write_embedding_model(tmp_path / "folder")
    (path / "modules.json").write_text(
        json.dumps([{"path": "", "type": "Transformer"}, {"path": "../1_Pooling", "type": "Pooling"}])
    )
    found = look_at(str(path))
    assert found is not None
    assert not found.embeddings
    path = write_embedding_model(tmp_path / "pickled", dense="Tanh")
    (path / "2_Dense" / "model.safetensors").rename(path / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(ib.ModelLoadError, match=r"model\.safetensors"):
        ib.load_model(path, backend="mlx")


def test_options_of_generators_are_refused(tmp_path: Path) -> None:
    path = write_embedding_model(tmp_path / "m")
    for option in ({"chat_template": "x"}, {"parallel_slots": 2}, {"adapters": ["a"]}, {"draft_model": "b"}):
        with pytest.raises(ib.UnsupportedError, match=next(iter(option))):
            ib.load_model(path, backend="mlx", **option)
    with pytest.raises(TypeError, match="num_draft_tokens"):
        ib.load_model(path, backend="mlx", extra={"num_draft_tokens": 1})
    with pytest.raises(ValueError, match="mode"):
        ib.load_model(path, backend="mlx", extra={"pooling": "mode"})
    with pytest.raises(TypeError, match="mapping"):
        ib.load_model(path, backend="mlx", extra=["pooling"])


def test_vectors_that_are_not_numbers_are_an_error(tmp_path: Path) -> None:
    path = write_embedding_model(tmp_path / "m")
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"] = np.full_like(weights["model.norm.weight"], np.nan)
    save_file(weights, path / "model.safetensors")
    with pytest.raises(ib.ModelLoadError, match="not numbers"):
        ib.load_model(path, backend="mlx")
