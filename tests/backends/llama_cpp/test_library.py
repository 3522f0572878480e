# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's C interface without the rest of its package, and its log."""

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


LOAD = """
import sys
from inference_bridge import load_model
def answer():
    with load_model(sys.argv[1], backend="llama_cpp", context_length=512) as model:
        return model.generate("The capital of France is", max_tokens=1).text()
"""


def test_the_rest_of_the_package_is_imported_when_it_is_asked_for(demo_model_path: Path) -> None:
    code = (
        LOAD
        + """
assert answer() == " Paris"
print(*(name for name in ("llama_cpp.llama_cpp", "llama_cpp.llama", "diskcache") if name in sys.modules))
from llama_cpp import Llama, llama_cpp
import llama_cpp as package
print(Llama.__module__, package.__version__[0].isdigit(), package.llama_decode is llama_cpp.llama_decode)
print(hasattr(package, "no_such_thing"), package.Llama is Llama, "__getattr__" in vars(package))
assert answer() == " Paris"  # its log is not on stderr, where the package sends it
"""
    )
    assert run(code, str(demo_model_path)).splitlines() == [
        "llama_cpp.llama_cpp",
        "llama_cpp.llama True True",
        "False True False",
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "from llama_cpp import *; Llama",
        "from llama_cpp.llama import Llama",
        "import llama_cpp._logger; llama_cpp.Llama",
        "import importlib, llama_cpp; importlib.reload(llama_cpp).Llama",
        "from unittest.mock import patch; patch('llama_cpp.Llama.eval').start().stop()",
    ],
)
def test_ways_of_asking(statement: str, demo_model_path: Path) -> None:
    assert run(LOAD + f"answer(); {statement}; print(answer())", str(demo_model_path)) == " Paris\n"


def test_threads_that_ask_at_once(demo_model_path: Path) -> None:
    code = (
        LOAD
        + """
import threading
answer()
found, start = [], threading.Barrier(8)
def ask(number):
    start.wait()
    if number % 2:
        import llama_cpp
        found.append(llama_cpp.Llama)
    else:
        from llama_cpp.llama import Llama
        found.append(Llama)
threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join(60)
print(len(found), len(set(found)))
"""
    )
    assert run(code, str(demo_model_path)) == "8 1\n"


def test_a_package_that_is_imported_already_is_taken_as_it_is(demo_model_path: Path) -> None:
    code = "import llama_cpp; before = llama_cpp.Llama" + LOAD + "print(answer(), llama_cpp.Llama is before)"
    assert run(code, str(demo_model_path)) == " Paris True\n"


def test_a_library_that_can_not_be_loaded_leaves_no_package_behind(tmp_path: Path) -> None:
    code = """
import sys
for _ in range(2):
    try:
        import inference_bridge.backends.llama_cpp.library
    except Exception as error:
        print(type(error).__name__, "llama_cpp" in sys.modules)
"""
    assert run(code, LLAMA_CPP_LIB_PATH=str(tmp_path)) == "FileNotFoundError False\n" * 2


def test_without_the_package() -> None:
    code = """
import sys
from importlib.machinery import PathFinder
class Without:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name == "llama_cpp" else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
try:
    import inference_bridge.backends.llama_cpp.library
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert run(code) == "llama_cpp\n"


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
