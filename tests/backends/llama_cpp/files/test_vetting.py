# SPDX-License-Identifier: Apache-2.0
"""A file on which llama.cpp ends the process is refused before this process loads it."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")

import gguf as writing

from inference_bridge import load_model
from inference_bridge._cache import scan_cache
from inference_bridge.backends.llama_cpp.files import vetting
from inference_bridge.catalog import verdicts
from inference_bridge.catalog.discovery import discover
from inference_bridge.catalog.headers import gguf
from inference_bridge.errors import ModelLoadError
from inference_bridge.options import LoadConfig
from tests.parts.models.tiny_gguf import write_embedding, write_llama, write_recurrent, write_sliding_window
from tests.parts.models.tiny_vision import write_gemma3, write_llava, write_projector, write_qwen

OPTIONS = LoadConfig(context_length=256, parallel_slots=1, threads=1)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """New files are not cached by default, and these tests write new files."""
    monkeypatch.setattr(scan_cache, "QUIET_SECONDS", 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return write_llama(tmp_path / "models" / "tiny.gguf")


def with_a_token_twice(path: Path) -> Path:
    """Two tokens with the same text: llama.cpp asserts that they are distinct."""
    data = path.read_bytes()
    name = struct.pack("<Q", 6) + b"<0x41>"
    assert data.count(name) == 1
    path.write_bytes(data.replace(name, struct.pack("<Q", 6) + b"<0x42>"))
    return path


def trial(path: Path, **more: Any) -> str | None:
    one = vetting.Trial(vetting.Subject(str(path), **more), gguf.read_metadata(path))
    try:
        return one.problem()
    finally:
        one.close()


def test_a_valid_file_is_tested_once_and_the_result_is_cached(model: Path) -> None:
    subject = vetting.Subject(str(model))
    assert verdicts.find(subject.files) is None
    with load_model(model, config=OPTIONS) as loaded:
        assert loaded.generate("Hello", max_tokens=2).text() is not None
    assert verdicts.find(subject.files) == (None,)
    assert vetting.Trial(subject, gguf.read_metadata(model)).known
    os.utime(model)  # another file, for all that is known
    assert verdicts.find(subject.files) is None


def test_a_file_that_ends_the_process_is_refused_and_listed_with_its_problem(model: Path) -> None:
    with_a_token_twice(model)
    assert [found.problem for found in discover(model.parent)] == [None]
    for _ in range(2):
        with pytest.raises(ModelLoadError, match="ends the process"):
            load_model(model, config=OPTIONS)
    (found,) = discover(model.parent)
    assert found.problem is not None
    assert "ends the process" in found.problem


def test_vet_false_loads_without_a_trial(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vetting, "Trial", None)
    load_model(model, config=OPTIONS.with_options({"vet": False})).close()


def test_a_large_file_is_tried_by_its_header(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vetting, "FULL_BYTES", 0)
    assert trial(model) is None
    verdicts_of_the_sound = verdicts.find(vetting.Subject(str(model)).files)
    assert verdicts_of_the_sound == (None,)
    problem = trial(with_a_token_twice(model))
    assert problem is not None
    assert "ends the process" in problem


def test_a_file_that_takes_too_long_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "busy.py"
    program.write_text(Path(vetting._PROGRAM).read_text().replace('full: bool = request["full"]', "while True: pass"))
    monkeypatch.setattr(vetting, "_PROGRAM", str(program))
    monkeypatch.setattr(vetting, "CPU_SECONDS", 1)
    assert "takes too long" in (trial(model) or "")


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is bounded on Linux alone")
def test_a_trial_is_bounded_in_memory(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "greedy.py"
    program.write_text(
        Path(vetting._PROGRAM).read_text().replace('full: bool = request["full"]', "full = bytes(1 << 30)")
    )
    monkeypatch.setattr(vetting, "_PROGRAM", str(program))
    assert "MemoryError" in (trial(model) or "")


def test_a_trial_ends_with_its_parent(model: Path, tmp_path: Path) -> None:
    program = tmp_path / "slow.py"
    slow = "problem = [open(sys.argv[0] + '.pid', 'w').write(str(os.getpid())), threading.Event().wait(60)]"
    program.write_text(Path(vetting._PROGRAM).read_text().replace("problem = examine(request)", slow))
    code = (
        "import os, sys, time\n"
        "from inference_bridge.backends.llama_cpp.files import vetting\n"
        "from inference_bridge.catalog.headers import gguf\n"
        "vetting._PROGRAM = sys.argv[2]\n"
        "trial = vetting.Trial(vetting.Subject(sys.argv[1]), gguf.read_metadata(sys.argv[1]))\n"
        "while not os.path.exists(sys.argv[2] + '.pid'): time.sleep(0.01)\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(model), str(program)], check=True, timeout=60)
    pid = int(Path(f"{program}.pid").read_text() or 0)
    assert waited(lambda: not _is_running(pid))


def waited(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 30
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_model_of_an_installed_package_is_not_tested(demo_model_path: Path) -> None:
    subject = vetting.Subject(str(demo_model_path))
    assert vetting.Trial(subject, gguf.read_metadata(demo_model_path)).known
    assert verdicts.find(subject.files) is None


@pytest.mark.parametrize("write", [write_sliding_window, write_recurrent])
def test_a_sound_model_of_each_kind_passes(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    assert trial(write(tmp_path / "m.gguf")) is None


@pytest.mark.parametrize("pooling", [1, 2, 3])
def test_a_sound_embedding_model_passes(tmp_path: Path, pooling: int) -> None:
    assert trial(write_embedding(tmp_path / "bert.gguf", pooling=pooling), embeds=True) is None
    assert trial(write_llama(tmp_path / "llama.gguf", pooling=pooling), embeds=True) is None


@pytest.mark.parametrize("write", [write_gemma3, write_qwen])
def test_a_sound_projector_of_each_kind_passes(tmp_path: Path, write: Callable[[Path], tuple[Path, Path]]) -> None:
    model, projector = write(tmp_path)
    assert trial(model, projector=str(projector)) is None


def test_a_projector_is_tried_with_its_model(tmp_path: Path) -> None:
    model, projector = write_llava(tmp_path)
    assert trial(model, projector=str(projector)) is None
    header = gguf.read_metadata(model)
    config = OPTIONS.with_options({"mmproj": str(projector)})
    assert vetting.check_extras(header, config, str(projector)) == str(projector)


def test_a_projector_that_ends_the_process_is_refused(tmp_path: Path) -> None:
    model, _ = write_llava(tmp_path)
    projector = write_projector(tmp_path / "wrong.gguf")
    data = projector.read_bytes()
    heads = data.index(b"clip.vision.attention.head_count") + len("clip.vision.attention.head_count") + 4
    projector.write_bytes(data[:heads] + struct.pack("<I", 7) + data[heads + 4 :])  # of 32 numbers
    header = gguf.read_metadata(model)
    asked = OPTIONS.with_options({"mmproj": str(projector)})
    with pytest.raises(ModelLoadError, match=r"wrong\.gguf"):
        vetting.check_extras(header, asked, str(projector))
    # one that was found beside the model is left out
    assert vetting.check_extras(header, OPTIONS, str(projector)) is None


def test_an_adapter_for_another_architecture_is_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "adapter.gguf"
    writer = writing.GGUFWriter(path, "gemma3")
    writer.add_type("adapter")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelLoadError, match="gemma3"):
        load_model(model, config=OPTIONS.with_options({"adapters": [str(path)]}))
    with pytest.raises(ModelLoadError, match="is not a LoRA adapter"):
        load_model(model, config=OPTIONS.with_options({"adapters": [str(model)]}))
