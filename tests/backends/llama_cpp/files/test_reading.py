# SPDX-License-Identifier: Apache-2.0
"""Reading a GGUF file: its thread, its progress, and its end."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_bridge import LoadConfig, ModelLoadError
from inference_bridge.authoring import load_progress
from inference_bridge.backends.llama_cpp import weights
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
from inference_bridge.backends.llama_cpp.placement import Placement

from ....parts.leaks import threads_since

QUESTION = "The capital of France is"


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.enumerate()
    yield
    assert threads_since(before) == []


def test_what_is_refused_while_the_file_is_read_leaves_no_thread(demo_model_path: Path) -> None:
    backend = LlamaCppBackend()
    with pytest.raises(TypeError, match="nonsense"):
        backend.load_model(str(demo_model_path), LoadConfig(extra={"nonsense": 1}))
    with pytest.raises(ModelLoadError, match="is not a projector"):
        backend.load_model(str(demo_model_path), LoadConfig(mmproj=str(demo_model_path)))


def test_the_thread_that_has_read_decodes(demo_model_path: Path) -> None:
    """The first one's for all, in a process in which no model is loaded yet."""
    code = """
import sys, threading
from inference_bridge import LoadConfig
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
backend = LlamaCppBackend()
def threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("inference-bridge")}
first = backend.load_model(sys.argv[1], LoadConfig(context_length=512))
(reader,) = threads()
second = backend.load_model(sys.argv[1], LoadConfig(context_length=512))
print(threads() == {reader}, first._worker is second._worker)
first.close()
print(threads() == {reader}, second.generate("1, 2,", max_tokens=2).text())
second.close()
print(threads())
"""
    command = [sys.executable, "-c", code, str(demo_model_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True True\nTrue  3\nset()\n", "")


def test_a_read_reports_how_much_is_loaded(demo_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[float] = []
    monkeypatch.setattr(load_progress, "report", lambda path, part: reported.append(part))
    with LlamaCppBackend().load_model(str(demo_model_path), LoadConfig(context_length=64)) as model:
        assert model.generate(QUESTION, max_tokens=1).text()
    assert reported == sorted(reported)
    assert reported[-1] == 1
    assert len(reported) > 100


def test_a_read_that_nobody_wants_ends_while_it_reports(demo_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    reported: list[float] = []

    def report(path: str, part: float) -> None:
        reported.append(part)
        if len(reported) == 5:
            stop.set()

    monkeypatch.setattr(load_progress, "report", report)
    with pytest.raises(ModelLoadError):
        weights.NativeModel(str(demo_model_path), Placement(), extra={}, taken=set(), stop=stop)
    assert len(reported) == 6  # five tensors, and the end
