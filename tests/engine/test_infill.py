# SPDX-License-Identifier: Apache-2.0
"""Fill in the middle with a tiny random model that has the tokens for it, against llama-server's /infill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from inference_bridge import LoadConfig, TextModel, UnsupportedError
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend

from ..parts.models.tiny_gguf import write_llama
from ..parts.servers.processes import llama_server

NAMES = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
PREFIX, SUFFIX = "def f(x):\n    return ", "\n\nf(3)"


def load(path: Path) -> TextModel:
    return LlamaCppBackend().load_model(str(path), LoadConfig(context_length=512, deterministic=True))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("fim") / "tiny.gguf", special=NAMES)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[TextModel]:
    with load(path) as loaded:
        yield loaded


async def test_the_prompt_is_prefix_suffix_middle(model: TextModel) -> None:
    assert "infill" in model.capabilities
    result = model.infill(PREFIX, SUFFIX, max_tokens=12).result()
    raw = model.generate(f"{NAMES[0]}{PREFIX}{NAMES[1]}{SUFFIX}{NAMES[2]}", max_tokens=12).result()
    assert result.text == raw.text
    assert result.metrics.prompt_tokens == raw.metrics.prompt_tokens
    assert await model.ainfill(PREFIX, SUFFIX, max_tokens=12).text() == result.text
    assert model.infill("", "", max_tokens=2).result().metrics.prompt_tokens == 4


def test_llama_server_fills_in_the_same(path: Path, model: TextModel) -> None:
    with llama_server(path, exact=True) as address:
        body = {"input_prefix": PREFIX, "input_suffix": SUFFIX, "n_predict": 12, "temperature": 0}
        answer = httpx2.post(f"{address}/infill", json=body)
    assert answer.status_code == 200, answer.text
    assert model.infill(PREFIX, SUFFIX, max_tokens=12).text() == answer.json()["content"]


def test_names_of_special_tokens_are_text(model: TextModel) -> None:
    plain = model.infill("x", "y", max_tokens=2).result().metrics.prompt_tokens
    named = model.infill(NAMES[2], "y", max_tokens=2).result().metrics.prompt_tokens
    assert named - plain == len(NAMES[2]) - 1


def test_options_are_those_of_generate(model: TextModel) -> None:
    assert model.infill(PREFIX, SUFFIX, regex="[0-9]{3}", max_tokens=12).text().isdigit()
    with pytest.raises(TypeError):
        model.infill(PREFIX, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tools"):
        model.infill(PREFIX, SUFFIX, tools=[{"name": "f", "description": "", "parameters": {}}])


def test_a_model_without_the_tokens_refuses(tmp_path: Path) -> None:
    with load(write_llama(tmp_path / "plain.gguf")) as plain:
        assert "infill" not in plain.capabilities
        for call in (plain.infill, plain.ainfill):
            with pytest.raises(UnsupportedError) as refused:
                call(PREFIX, SUFFIX)
            assert refused.value.feature == "infill"
