# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's C interface, and its log."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from inference_bridge.backends.llama_cpp import library
from inference_bridge.backends.llama_cpp.library import complaints, last_of, lib, unheard
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


def test_what_another_thread_complains_of_is_not_lost_meanwhile(tmp_path: Path) -> None:
    """In one of them a model is read, whose details nobody wants."""
    with complaints() as reasons:
        with unheard():
            assert not lib.llama_model_load_from_file(os.fsencode(tmp_path / "none.gguf"), _params())
        assert "none.gguf" in last_of(reasons)

    begun, done = threading.Event(), threading.Event()

    def listen() -> None:
        with complaints() as lines:
            begun.set()
            done.wait(60)
            lib.llama_model_load_from_file(os.fsencode(tmp_path / "other.gguf"), _params())
            heard.extend(lines)

    heard: list[str] = []
    thread = threading.Thread(target=listen)
    with unheard():
        thread.start()
        begun.wait(60)
        done.set()
        thread.join()
    assert "other.gguf" in last_of(heard)


def _params() -> object:
    return lib.llama_model_default_params()


def test_nothing_said_is_told_as_that() -> None:
    assert library.last_of([]) == "it gave no reason"
