# SPDX-License-Identifier: Apache-2.0
"""The real `llm` command and LangChain with MLX. Each call of `llm` is a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import inference_bridge as ib

from ...parts.models.mlx_embedding import write_embedding_model
from ...parts.models.mlx_tiny import write_tiny_mlx

QUESTION = "Why is the sky blue?"

# What is injected are facts about the machine; all else is what a Mac would run, with MLX's CPU underneath.
AS_ON_A_MAC = """
import runpy
from inference_bridge.backends.mlx import backend as metal
metal.this_platform = lambda: metal.Platform("darwin", "arm64")
metal.metal_is_usable = lambda: True
runpy.run_module("llm", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    write_tiny_mlx(directory / "tiny-mlx")
    write_embedding_model(directory / "tiny-bert", architecture="bert")
    return directory


@pytest.fixture(scope="module")
def answer(models: Path) -> Iterator[str]:
    """The model's answer in this process."""
    with ib.load_model(models / "tiny-mlx", backend="mlx") as model:
        yield model.chat([ib.Message("user", QUESTION)], max_tokens=20).text()


def run(models: Path, *arguments: str, program: tuple[str, ...] = ("-m", "llm")) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *program, *arguments],
        env=os.environ | {"LLM_LOAD_PLUGINS": "inference-bridge", "INFERENCE_BRIDGE_MODELS": str(models)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_llm_with_mlx(models: Path, answer: str) -> None:
    done = run(models, "-m", "mlx:tiny-mlx", "-o", "temperature", "0", "-o", "max_tokens", "20", QUESTION)
    assert (done.returncode, done.stdout) == (0, answer + "\n")
    (logged,) = json.loads(run(models, "logs", "--json", "-n", "1").stdout)
    assert (logged["model"], logged["response"], logged["output_tokens"]) == ("mlx:tiny-mlx", answer, 20)


def test_llm_embeds_with_mlx(models: Path) -> None:
    done = run(models, "embed", "-m", "mlx:tiny-bert", "-c", QUESTION, "-f", "json")
    assert done.returncode == 0, done.stderr
    with ib.load_model(models / "tiny-bert", backend="mlx") as model:
        (vector,) = model.embed([QUESTION])  # type: ignore[attr-defined]
    assert json.loads(done.stdout) == pytest.approx(vector, abs=1e-6)


def test_llm_with_metal(models: Path, answer: str) -> None:
    options = ("-o", "temperature", "0", "-o", "max_tokens", "20", "--no-log")
    done = run(models, "-m", "metal:tiny-mlx", *options, QUESTION, program=("-c", AS_ON_A_MAC))
    assert (done.returncode, done.stdout) == (0, answer + "\n")
    listed = run(models, "models", program=("-c", AS_ON_A_MAC)).stdout
    assert "metal:tiny-mlx" in listed


def test_llm_reports_that_metal_is_unavailable(models: Path) -> None:
    if sys.platform == "darwin":  # Metal is available on some machines only: virtual machines don't have it
        pytest.skip("Metal may be available here, and this is about where it is not")
    done = run(models, "-m", "metal:tiny-mlx", "--no-log", QUESTION)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "metal:tiny-mlx" in done.stderr


def test_langchain(models: Path, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from langchain_inference_bridge import ChatInferenceBridge

    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(models))
    with ChatInferenceBridge(model="mlx:tiny-mlx", max_tokens=20, temperature=0) as chat:
        said = chat.invoke(QUESTION)
        assert said.text == answer
        assert said.usage_metadata is not None
        assert said.usage_metadata["output_tokens"] == 20
        assert "".join(str(chunk.text) for chunk in chat.stream(QUESTION)) == answer
        assert [one.text for one in chat.batch([QUESTION] * 3)] == [answer] * 3
