# SPDX-License-Identifier: Apache-2.0
"""The backends metal and mlx before a model is loaded: availability, and accepted sources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import inference_bridge as ib
from inference_bridge.availability import install_command
from inference_bridge.backends.mlx import backend as metal
from inference_bridge.backends.mlx.backend import MetalBackend, MlxBackend, Platform, this_platform

from ...parts.models.gguf_files import write_checkpoint

INSTALL_METAL = install_command("metal")
INSTALL_MLX = install_command("mlx")

MAC = Platform("darwin", "arm64")
BARE_MAC = Platform("darwin", "arm64", ("mlx_lm",))
INTEL_MAC = Platform("darwin", "x86_64", ("mlx", "mlx_lm"))
LINUX = Platform("linux", "x86_64")
BARE_LINUX = Platform("linux", "x86_64", ("mlx", "mlx_lm"))
HALF_LINUX = Platform("linux", "x86_64", (), library=False)
WINDOWS = Platform("win32", "amd64", ("mlx", "mlx_lm"))


@pytest.mark.parametrize(
    ("here", "backend", "reason", "hint"),
    [
        (MAC, MetalBackend, None, None),
        (MAC, MlxBackend, None, None),
        (BARE_MAC, MetalBackend, "the package mlx_lm is not installed", INSTALL_METAL),
        (BARE_MAC, MlxBackend, "the package mlx_lm is not installed", INSTALL_MLX),
        (INTEL_MAC, MetalBackend, "this Python runs on x86_64", "use llama_cpp"),
        (INTEL_MAC, MlxBackend, "this Python runs on x86_64", "use llama_cpp"),
        (LINUX, MetalBackend, "this system is linux", "mlx:model"),
        (LINUX, MlxBackend, None, None),
        (BARE_LINUX, MetalBackend, "this system is linux", "mlx:model"),
        (BARE_LINUX, MlxBackend, "the package mlx is not installed", INSTALL_MLX),
        (HALF_LINUX, MlxBackend, "without the library for a device", "pip install 'mlx[cpu]'"),
        (WINDOWS, MetalBackend, "this system is win32", "mlx:model"),
        (WINDOWS, MlxBackend, "MLX has no build for win32", "llama_cpp"),
    ],
)
def test_availability(
    here: Platform, backend: type[MetalBackend | MlxBackend], reason: str | None, hint: str | None
) -> None:
    told = backend(lambda: here).availability()
    assert told.ok is (reason is None)
    assert (reason or "") in told.reason
    assert (hint or "") in told.hint
    assert bool(told.reason) == bool(told.hint) == (not told.ok)


def test_this_machine() -> None:
    here = this_platform()
    assert here.system == sys.platform
    assert here.missing == ()
    assert here.library
    assert MlxBackend().availability().ok
    assert MetalBackend().availability().ok is (here.system == "darwin" and here.machine == "arm64")


def test_a_library_of_linux_that_is_missing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":  # on macOS no separate package can be missing
        pytest.skip("elsewhere the library comes with the package")
    monkeypatch.setattr("os.path.exists", lambda _: False)
    assert not this_platform().library


def test_checks_of_availability_import_neither_mlx_nor_its_dependencies() -> None:
    code = (
        "import sys; from inference_bridge import get, names; names();"
        "[(get(name).availability(), get(name).can_load('/')) for name in ('metal', 'mlx')];"
        "print(*{name.partition('.')[0] for name in sys.modules} & {'mlx', 'mlx_lm', 'transformers', 'numpy'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_accepted_directories(tmp_path: Path) -> None:
    backend = MlxBackend()
    directory = write_checkpoint(tmp_path / "model")
    assert backend.can_load(str(directory))
    assert not backend.can_load(str(directory / "config.json"))
    assert not backend.can_load(str(tmp_path))
    assert not backend.can_load(str(tmp_path / "missing"))
    assert not backend.can_load("http://localhost:8080")


def test_the_order_of_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ib.names()
    assert [name for name in names if name in ("metal", "llama_cpp", "mlx")] == ["metal", "llama_cpp", "mlx"]
    directory = str(write_checkpoint(tmp_path / "model"))
    monkeypatch.setattr(metal, "this_platform", lambda: LINUX)
    assert ib.default(directory).name == "mlx"
    monkeypatch.setattr(metal, "this_platform", lambda: MAC)
    assert ib.default(directory).name == "metal"
    assert ib.default().name == "metal"
    monkeypatch.setattr(metal, "this_platform", lambda: BARE_LINUX)
    with pytest.raises(ib.NoBackendAvailableError, match="the package mlx is not installed") as none:
        ib.default(directory)
    assert INSTALL_MLX in none.value.reasons["mlx"]


def test_metal_where_it_is_not(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model")
    if sys.platform != "darwin":
        with pytest.raises(ib.BackendUnavailableError, match="requires macOS"):
            ib.load_model(directory, backend="metal")


def test_a_mac_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model")
    monkeypatch.setattr(metal, "metal_is_usable", lambda: False)
    with pytest.raises(ib.ModelLoadError, match="no GPU that Metal drives"):
        MetalBackend(lambda: MAC).load_model(str(directory), ib.LoadConfig())


@pytest.mark.parametrize(
    "option",
    [{"gpu_layers": 10}, {"threads": 2}, {"mmproj": "projector.gguf"}, {"api_key": "x"}],
    ids=lambda option: next(iter(option)),
)
def test_a_load_option_it_does_not_honour(option: dict[str, object], tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model")
    with pytest.raises(ib.UnsupportedError, match=next(iter(option))):
        ib.load_model(directory, backend="mlx", **option)  # type: ignore[arg-type]
