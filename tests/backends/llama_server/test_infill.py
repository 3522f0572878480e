# SPDX-License-Identifier: Apache-2.0
"""Fill in the middle on a managed server: the text is that of the same model in process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

from inference_bridge import ContextLengthExceededError, TextModel, UnsupportedError, load_model
from inference_bridge.engine.infill import FILL_NAMES

from ...parts.infill import GREEDY, NAMES, PREFIX, SUFFIX, check_equal, in_process, write_fill
from ...parts.models.tiny_gguf import write_llama

pytestmark = pytest.mark.usefixtures("short_runtime_directory")

EXACT: dict[str, Any] = {"threads": 1, "extra": ["--flash-attn", "off", "--no-repack"]}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fill(tmp_path_factory.mktemp("fim"))


@pytest.fixture(scope="module")
def local(path: Path) -> Iterator[TextModel]:
    with in_process(path) as model:
        yield model


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[TextModel]:
    with load_model(path, backend="llama_server", context_length=512, **EXACT) as model:
        yield model


async def test_text_is_that_of_the_model_in_process(model: TextModel, local: TextModel) -> None:
    await check_equal(model, local)


def test_text_that_is_too_long_is_an_error(model: TextModel) -> None:
    with pytest.raises(ContextLengthExceededError):
        model.infill("x" * 600, SUFFIX, **GREEDY).text()


async def test_options_are_those_of_generate(model: TextModel) -> None:
    assert re.fullmatch("[0-9]{3}", model.infill(PREFIX, SUFFIX, regex="[0-9]{3}", max_tokens=12).text())
    assert await model.ainfill(PREFIX, SUFFIX, choices=["1", "2"], max_tokens=12).text() in ("1", "2")
    with pytest.raises(TypeError, match="suffix"):
        model.infill(PREFIX, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tools"):
        model.infill(PREFIX, SUFFIX, tools=[{"name": "f", "description": "", "parameters": {}}])


def test_another_family_whose_tokens_come_in_another_order(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny.gguf", special=["<|other|>", *FILL_NAMES[5][::-1]])
    with (
        load_model(path, backend="llama_cpp", context_length=512, deterministic=True) as local,
        load_model(path, backend="llama_server", context_length=512, **EXACT) as model,
    ):
        assert model.infill(PREFIX, "", **GREEDY).text() == local.infill(PREFIX, "", **GREEDY).text()


def test_a_model_without_the_tokens_refuses(tmp_path: Path) -> None:
    with load_model(write_llama(tmp_path / "plain.gguf", special=NAMES[:2]), backend="llama_server") as model:
        assert "infill" not in model.capabilities
        for call in (model.infill, model.ainfill):
            with pytest.raises(UnsupportedError, match="no tokens for prefix") as refused:
                call(PREFIX, SUFFIX)
            assert refused.value.feature == "infill"


def test_a_model_that_ends_every_text_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server would put the end of a text behind the first token of the prompt."""
    add_space_prefix = gguf.GGUFWriter.add_add_space_prefix

    def ending(writer: gguf.GGUFWriter, value: bool) -> None:
        add_space_prefix(writer, value)
        writer.add_add_eos_token(True)

    monkeypatch.setattr(gguf.GGUFWriter, "add_add_space_prefix", ending)
    with load_model(write_llama(tmp_path / "ends.gguf", special=NAMES), backend="llama_server") as model:
        assert "infill" not in model.capabilities
