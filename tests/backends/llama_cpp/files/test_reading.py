# SPDX-License-Identifier: Apache-2.0
"""A GGUF file that is read before it is loaded."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_bridge import EmbeddingModel, LoadConfig, ModelLoadError
from inference_bridge.authoring import load_progress
from inference_bridge.backends.llama_cpp import weights
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
from inference_bridge.backends.llama_cpp.files import reading as llama_reading
from inference_bridge.backends.llama_cpp.files.reading import Reading
from inference_bridge.backends.llama_cpp.flag import Flag
from inference_bridge.backends.llama_cpp.placement import Placement

from ....parts.leaks import threads_since
from ....parts.models.gguf_files import write_model
from ....parts.models.tiny_gguf import write_embedding

QUESTION = "The capital of France is"


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Neither a reading, nor a thread."""
    before = threading.enumerate()
    yield
    left = list(llama_reading._ahead.values())
    llama_reading._end(list(llama_reading._ahead))
    assert left == []
    assert threads_since(before) == []


@pytest.fixture(autouse=True)
def files_are_trusted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are once a trial load has passed."""
    if "untrusted" not in request.node.name:
        monkeypatch.setattr(llama_reading, "is_trusted", lambda _: True)


def test_an_untrusted_file_is_not_read_ahead(tmp_path: Path) -> None:
    llama_reading.begin(str(write_embedding(tmp_path / "bert.gguf")))
    assert not llama_reading._ahead


@pytest.fixture
def readings(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The files that llama.cpp has read, one by one."""
    caplog.set_level(logging.DEBUG, "inference_bridge")
    files: list[str] = []

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if "loaded meta data" in message:
                files.append(message.rpartition(" (version")[0].rpartition(" from ")[2])

    handler = Heard()
    logger = logging.getLogger("inference_bridge")
    logger.addHandler(handler)
    yield files
    logger.removeHandler(handler)


def ahead() -> Reading:
    (reading,) = llama_reading._ahead.values()
    return reading


def answer(path: Path, config: LoadConfig | None = None) -> str:
    model = LlamaCppBackend().load_model(str(path), config or LoadConfig(context_length=512))
    with model:
        return model.generate(QUESTION, max_tokens=1).text()


def test_the_load_takes_what_was_begun(demo_model_path: Path, readings: list[str]) -> None:
    LlamaCppBackend().prefetch(str(demo_model_path))
    assert answer(demo_model_path) == " Paris"
    assert readings == [str(demo_model_path)]
    assert answer(demo_model_path) == " Paris"
    assert readings == [str(demo_model_path)] * 2


def test_so_it_is_with_a_model_for_embeddings(tmp_path: Path, readings: list[str]) -> None:
    path = write_embedding(tmp_path / "bert.gguf")
    LlamaCppBackend().prefetch(str(path))
    with LlamaCppBackend().load_model(str(path), LoadConfig()) as model:
        assert isinstance(model, EmbeddingModel)
        assert len(model.embed(["a text"])) == 1
    assert readings == [str(path)]


def test_what_is_begun_twice_is_read_once(demo_model_path: Path, readings: list[str]) -> None:
    llama_reading.begin(str(demo_model_path))
    first = ahead()
    llama_reading.begin(os.path.relpath(demo_model_path))
    assert ahead() is first
    assert answer(demo_model_path) == " Paris"
    assert readings == [str(demo_model_path)]


def test_another_file_takes_its_place(demo_model_path: Path, tmp_path: Path) -> None:
    llama_reading.begin(str(demo_model_path))
    first = ahead()
    native = first.native()
    other = write_embedding(tmp_path / "bert.gguf")
    llama_reading.begin(str(other))
    assert native.pointer is None
    assert not first.wanted
    assert answer(demo_model_path) == " Paris"
    assert ahead().path == str(other), "the load of one model leaves another alone"
    LlamaCppBackend().load_model(str(other), LoadConfig()).close()


@pytest.mark.parametrize(
    "config", [LoadConfig(gpu_layers=0), LoadConfig(deterministic=True), LoadConfig(extra={"check_tensors": True})]
)
def test_a_load_in_another_way_reads_for_itself(demo_model_path: Path, readings: list[str], config: LoadConfig) -> None:
    llama_reading.begin(str(demo_model_path))
    native = ahead().native()
    assert answer(demo_model_path, config) == " Paris"
    assert native.pointer is None
    assert readings == [str(demo_model_path)] * 2


def test_a_file_that_has_changed_is_read_again(demo_model_path: Path, tmp_path: Path, readings: list[str]) -> None:
    path = tmp_path / "model.gguf"
    shutil.copyfile(demo_model_path, path)
    llama_reading.begin(str(path))
    native = ahead().native()
    os.utime(path, ns=(1, 1))
    assert answer(path) == " Paris"
    assert native.pointer is None
    assert readings == [str(path)] * 2


def test_what_fails_is_told_by_the_load(tmp_path: Path) -> None:
    path = write_model(tmp_path / "no-vocabulary.gguf")
    with pytest.raises(ModelLoadError, match="llama.cpp can't load .*: .*") as alone:
        answer(path)
    LlamaCppBackend().prefetch(str(path))
    with pytest.raises(ModelLoadError) as told:
        answer(path)
    assert str(told.value) == str(alone.value)


def test_what_is_refused_before_it_is_loaded_ends_the_reading(demo_model_path: Path) -> None:
    llama_reading.begin(str(demo_model_path))
    native = ahead().native()
    with pytest.raises(TypeError, match="nonsense"):
        answer(demo_model_path, LoadConfig(extra={"nonsense": 1}))
    llama_reading.begin(str(demo_model_path))
    with pytest.raises(ModelLoadError, match="is not a projector"):
        answer(demo_model_path, LoadConfig(mmproj=str(demo_model_path)))
    assert native.pointer is None


RUN = """
import os, sys
from inference_bridge import LoadConfig
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
backend = LlamaCppBackend()
backend.prefetch(sys.argv[1])
"""


FORK = """
child = os.fork()
if child == 0:
    backend.prefetch(sys.argv[1])
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(backend.load_model(sys.argv[1], LoadConfig()).generate("1, 2,", max_tokens=2).text())
"""

# Windows has no fork, so no child can inherit a reading there; a program ends on every platform.
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")


@pytest.mark.parametrize(
    ("code", "status", "out"),
    [
        ("print('done')", 0, "done\n"),
        ("sys.exit(7)", 7, ""),
        pytest.param(FORK, 0, "7\n 3\n", marks=needs_fork, id="fork"),
    ],
)
def test_a_program_that_ends_or_forks_before_it_loads(code: str, status: int, out: str, demo_model_path: Path) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", RUN + code, str(demo_model_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, out, "")


def test_the_thread_that_has_read_decodes(demo_model_path: Path) -> None:
    """The first one's for all, in a process in which no model is loaded yet."""
    code = """
import threading
def threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("inference-bridge")}
(reader,) = threads()
first = backend.load_model(sys.argv[1], LoadConfig(context_length=512))
second = backend.load_model(sys.argv[1], LoadConfig(context_length=512))
print(threads() == {reader}, first._worker is second._worker)
first.close()
print(threads() == {reader}, second.generate("1, 2,", max_tokens=2).text())
second.close()
print(threads())
"""
    command = [sys.executable, "-c", RUN + code, str(demo_model_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True True\nTrue  3\nset()\n", "")


@pytest.mark.parametrize("watched", [True, False])
def test_a_long_read_reports_how_much_is_loaded(
    demo_model_path: Path, monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    reported: list[float] = []
    monkeypatch.setattr(weights, "LONG_BYTES", 0)
    monkeypatch.setattr(load_progress, "watched", watched)
    monkeypatch.setattr(load_progress, "report", lambda path, part: reported.append(part))
    with LlamaCppBackend().load_model(str(demo_model_path), LoadConfig(context_length=64)) as model:
        assert model.generate(QUESTION, max_tokens=1).text()
    assert reported == sorted(reported)
    assert reported[-1] == 1
    assert (len(reported) > 100) is watched


def test_a_read_that_nobody_wants_ends_while_it_reports(demo_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Flag(True)
    reported: list[float] = []

    def report(path: str, part: float) -> None:
        reported.append(part)
        wanted.set(len(reported) < 5)

    monkeypatch.setattr(weights, "LONG_BYTES", 0)
    monkeypatch.setattr(load_progress, "watched", True)
    monkeypatch.setattr(load_progress, "report", report)
    with pytest.raises(ModelLoadError):
        weights.NativeModel(str(demo_model_path), Placement(), extra={}, taken=set(), wanted=wanted)
    assert len(reported) == 6  # five tensors, and the end
