# SPDX-License-Identifier: Apache-2.0
"""Embedding models in llm: `llm embed` and related commands, with a tiny model that the tests build."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import llm
import pytest

import inference_bridge as ib
from inference_bridge import LoadConfig, Request, TextModel, Token
from llm_inference_bridge import register_embedding_models, register_models

from ...parts.models.tiny import WordsBackend
from ...parts.models.tiny_gguf import WIDTH, write_embedding
from .test_cli import assert_one_line, run

MODEL = "llama_cpp:bert"
TEXTS = {
    "cat": "the cat sat on the mat",
    "dog": "a small dog ran to the house",
    "colours": "red and blue",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    write_embedding(directory / "bert.gguf")
    return directory


@pytest.fixture
def _found(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(models))


@pytest.mark.usefixtures("_found")
def test_embed_embed_multi_and_similar(tmp_path: Path) -> None:
    listed = run("embed-models")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert MODEL in listed.stdout
    assert MODEL not in run("models").stdout  # it answers no prompt

    one = run("embed", "-m", MODEL, "-c", TEXTS["cat"], "-f", "json")
    assert (one.returncode, one.stderr) == (0, "")
    vector = json.loads(one.stdout)
    assert len(vector) == WIDTH
    assert math.hypot(*vector) == pytest.approx(1)

    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps([{"id": id, "content": text} for id, text in TEXTS.items()]))
    many = run("embed-multi", "texts", str(texts), "-m", MODEL, "--store")
    assert many.returncode == 0, many.stderr
    near = run("similar", "texts", "-c", "blue and red", "-n", "1")
    assert (near.returncode, near.stderr) == (0, "")
    found = json.loads(near.stdout)
    assert (found["id"], found["content"]) == ("colours", TEXTS["colours"])
    assert found["score"] > 0.9


@pytest.mark.usefixtures("_found")
def test_an_error_is_one_line() -> None:
    assert_one_line(run("embed", "-m", MODEL, "-c", "the cat " * 100), "holds 64")


@pytest.mark.usefixtures("_found")
def test_embed_multi_keeps_the_rows_beside_one_that_is_too_long(tmp_path: Path) -> None:
    rows = {"short": "the cat", "long": "a dog that " * 100, "other": "the sea"}
    (tmp_path / "rows.json").write_text(json.dumps([{"id": id, "text": text} for id, text in rows.items()]))
    done = run("embed-multi", "texts", str(tmp_path / "rows.json"), "-m", MODEL)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "Warning: " in line]
    assert len(warnings) == 1
    assert "'a dog that" in warnings[0]
    assert f"of {len(rows['long'])} characters" in warnings[0]
    collections = json.loads(run("collections", "list", "--json").stdout)
    assert [(one["name"], one["num_embeddings"]) for one in collections] == [("texts", 3)]
    alone = json.loads(run("embed", "-m", MODEL, "-c", "the cat").stdout)
    near = json.loads(run("similar", "texts", "-c", "the cat", "-n", "1").stdout)
    assert (near["id"], len(alone)) == ("short", len(alone))
    assert near["score"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.usefixtures("_found")
def test_an_embedding_model_is_known_by_its_name_alone() -> None:
    name = MODEL.partition(":")[2]
    assert run("embed", "-m", name, "-c", "the cat").stdout == run("embed", "-m", MODEL, "-c", "the cat").stdout


# ---------------------------------------------------------------- through Python


class Lengths(TextModel):
    """Embeds a text as its length, and keeps the batches."""

    info = ib.ModelInfo()
    capabilities = frozenset({"embeddings"})

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.batches.append(list(texts))
        return [[float(len(text))] for text in texts]

    async def aembed(self, texts: Sequence[str]) -> list[list[float]]:
        return self.embed(texts)

    def _run(self, request: Request) -> Iterator[Token]:
        yield Token("")

    def close(self) -> None:
        pass


class Remote(WordsBackend):
    load_options = frozenset({"api_key"})

    def __init__(self) -> None:
        super().__init__("remote")
        self.model = Lengths()
        self.configs: list[LoadConfig] = []

    def load_model(self, source: str, config: LoadConfig) -> TextModel:
        self.configs.append(config)
        return self.model


def embedders() -> dict[str, Any]:
    theirs: list[Any] = []
    register_embedding_models(lambda model, aliases: theirs.append(model))
    return {model.model_id: model for model in theirs}


@pytest.mark.usefixtures("no_models_in_llm")
def test_a_remote_one_is_what_its_configuration_says_and_has_its_key(
    home: Path, configure: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(
        """
        [models.vectors]
        source = "remote:https://gpu.example"
        api_key_env = "GPU_KEY"
        embeddings = true
        [models.words]
        source = "remote:https://gpu.example"
        """
    )
    ib.register(remote := Remote())
    prompted: list[str] = []
    register_models(lambda model, _, aliases: prompted.append(model.model_id), [])
    assert [id for id in prompted if "SmolLM2" not in id] == ["remote:words"]

    model = embedders()["remote:vectors"]
    with pytest.raises(llm.NeedsKeyException, match="'llm keys set vectors' or set the GPU_KEY environment variable"):
        model.embed("a")
    (home / "llm").mkdir(exist_ok=True)
    (home / "llm" / "keys.json").write_text('{"vectors": "stored"}')
    assert model.embed("abc") == [3.0]
    assert list(model.embed_multi(["a"] * 100)) == [[1.0]] * 100
    assert [len(batch) for batch in remote.model.batches] == [1, 64, 36]
    assert remote.configs == [LoadConfig(api_key="stored")]
    monkeypatch.setenv("GPU_KEY", "environment")
    (home / "llm" / "keys.json").unlink()
    assert model.embed("abc") == [3.0]
    assert remote.configs[1:] == [LoadConfig(api_key="environment")]


@pytest.mark.usefixtures("no_models_in_llm")
def test_a_model_without_embeddings_is_an_error(configure: Callable[[str], Path]) -> None:
    configure("[models.vectors]\nsource = 'words:x'\nembeddings = true")
    ib.register(WordsBackend())
    with pytest.raises(llm.ModelError, match="words:vectors generates text and is not an embedding model"):
        embedders()["words:vectors"].embed("a")
