# SPDX-License-Identifier: Apache-2.0
"""Fill in the middle and truncated embeddings on servers: a real llama-server, this package's own, recorded answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inference_bridge import ContextLengthExceededError, TextModel, UnsupportedError, load_model

from ...parts.infill import GREEDY, PREFIX, SUFFIX, check_equal, in_process, write_fill
from ...parts.models.tiny_gguf import write_embedding, write_llama
from ...parts.servers.fault_server import reply
from ...parts.servers.processes import llama_server
from ...parts.servers.recorded import recorded
from ...serve.conftest import running


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fill(tmp_path_factory.mktemp("fim"))


@pytest.fixture(scope="module")
def local(path: Path) -> Iterator[TextModel]:
    with in_process(path) as model:
        yield model


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[TextModel]:
    with llama_server(path, exact=True) as address, load_model(address) as model:
        yield model


async def test_a_llama_server_fills_in_as_in_process(model: TextModel, local: TextModel) -> None:
    await check_equal(model, local)
    with pytest.raises(ContextLengthExceededError):
        model.infill("x" * 600, SUFFIX, **GREEDY).text()
    with pytest.raises(TypeError, match="suffix"):
        model.infill(PREFIX, 3)  # type: ignore[arg-type]


async def test_infill_on_this_package_s_server(local: TextModel) -> None:
    with running({"tiny": local}) as address, load_model(address, model="tiny") as model:
        assert "infill" in model.capabilities
        expected = local.infill(PREFIX, SUFFIX, **GREEDY).text()
        assert model.infill(PREFIX, SUFFIX, **GREEDY).text() == expected
        assert await model.ainfill(PREFIX, SUFFIX, **GREEDY).text() == expected


def test_a_model_without_the_tokens_refuses(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "plain.gguf")
    with llama_server(path) as address, load_model(address) as model:
        assert "infill" not in model.capabilities
        with pytest.raises(UnsupportedError, match="no tokens for prefix"):
            model.infill(PREFIX, SUFFIX)


def test_infill_on_other_servers_is_refused_with_an_alternative() -> None:
    with recorded({"data": [{"id": "m", "owned_by": "vllm"}]}, {}) as (_, model):
        with pytest.raises(UnsupportedError, match="vLLM has no endpoint .* use a llama-server") as refused:
            model.infill(PREFIX, SUFFIX)
        assert refused.value.feature == "infill"


# ---------------------------------------------------------------- embed(truncate=True)

LONG = ["the cat", "dog " * 100]


async def test_truncated_embeddings_on_this_package_s_server(tmp_path: Path) -> None:
    source = f"llama_cpp:{write_embedding(tmp_path / 'bert.gguf')}"
    with (
        load_model(source, threads=1) as local,
        running({"bert": local}) as address,
        load_model(address, model="bert") as model,
    ):
        expected = local.embed(LONG, truncate=True)  # type: ignore[attr-defined]
        for vectors in (model.embed(LONG, truncate=True), await model.aembed(LONG, truncate=True)):  # type: ignore[attr-defined]
            assert np.array(vectors) == pytest.approx(np.array(expected), abs=1e-6)
        with pytest.raises(ContextLengthExceededError, match=r"texts\[1\]"):
            model.embed(LONG)  # type: ignore[attr-defined]


def test_truncation_on_llama_server_is_refused(tmp_path: Path) -> None:
    with llama_server(write_embedding(tmp_path / "bert.gguf"), embedding=True) as address, load_model(address) as model:
        with pytest.raises(UnsupportedError, match="shorten them first"):
            model.embed(LONG, truncate=True)  # type: ignore[attr-defined]
        assert len(model.embed(LONG[:1])) == 1  # type: ignore[attr-defined]


def test_truncation_on_vllm_is_requested() -> None:
    vectors = {"data": [{"index": 0, "embedding": [0.5, 0.5]}], "usage": {"prompt_tokens": 3}}
    models = {"data": [{"id": "m", "owned_by": "vllm"}]}
    with recorded(models, {"/v1/embeddings": reply(vectors)}) as vllm:
        assert vllm.model.embed(["a"], truncate=True) == [[0.5, 0.5]]  # type: ignore[attr-defined]
        assert vllm.sent("/v1/embeddings") == {"input": ["a"], "truncate_prompt_tokens": -1}
        vllm.model.embed(["a"])  # type: ignore[attr-defined]
        assert vllm.sent("/v1/embeddings") == {"input": ["a"]}
