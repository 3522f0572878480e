# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's C interface, and its log."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inference_bridge.backends.llama_cpp import library
from inference_bridge.backends.llama_cpp.library import complaints, last_of, lib
from inference_bridge.backends.llama_cpp.placement import Placement
from inference_bridge.backends.llama_cpp.weights import NativeModel


def run(code: str, *arguments: str, **environment: str) -> str:
    """What a fresh Python prints; nothing may come on stderr."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_program_that_has_imported_the_package(demo_model_path: Path) -> None:
    """The package turns llama.cpp's log to stderr when it is imported; `run` checks that nothing is there."""
    code = """
import sys
from llama_cpp import Llama
from inference_bridge import load_model
with load_model(sys.argv[1], backend="llama_cpp", context_length=512) as model:
    print(model.generate("The capital of France is", max_tokens=1).text())
"""
    assert run(code, str(demo_model_path)) == " Paris\n"


# ---------------------------------------------------------------- the log


def read(path: Path) -> None:
    NativeModel(str(path), Placement(gpu_layers=0), extra={}, taken=set()).close()


def test_what_is_told_while_a_model_is_read_is_heard_by_who_listens(
    demo_model_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("inference_bridge")
    caplog.set_level(logging.WARNING, logger.name)
    read(demo_model_path)
    assert caplog.text == ""
    caplog.set_level(logging.DEBUG, logger.name)
    read(demo_model_path)
    assert "llama_model_loader" in caplog.text
    assert capfd.readouterr() == ("", "")


def test_complaints_are_those_of_the_own_thread(tmp_path: Path) -> None:
    def listen(name: str) -> str:
        with complaints() as lines:
            ready.wait()
            assert not lib.llama_model_load_from_file(os.fsencode(tmp_path / name), lib.llama_model_default_params())
            ready.wait()
        return last_of(lines)

    ready = threading.Barrier(2, timeout=60)
    with ThreadPoolExecutor(2) as pool:
        heard = list(pool.map(listen, ["one.gguf", "two.gguf"]))
    assert "one.gguf" in heard[0]
    assert "two.gguf" not in heard[0]
    assert "two.gguf" in heard[1]
    assert "one.gguf" not in heard[1]


def test_nothing_said_is_told_as_that() -> None:
    assert library.last_of([]) == "it gave no reason"
