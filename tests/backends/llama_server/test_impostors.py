# SPDX-License-Identifier: Apache-2.0
"""Programs that pose as a managed server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

import inference_bridge as ib
from inference_bridge import LoadConfig
from inference_bridge.backends.llama_server.backend import LlamaServerBackend
from inference_bridge.backends.llama_server.model import ServerModel
from inference_bridge.backends.llama_server.rocm import RocmBackend
from inference_bridge.backends.warm import directories

from ...parts.models.tiny_gguf import write_llama
from ...parts.servers.impostor import impostor
from ...parts.servers.managed import REAL, script, short_directory, wait_until
from .test_rocm import RX_6800, tree

SECRET = "My secret is 8h3k2."
SETTINGS = LoadConfig(context_length=512, parallel_slots=1, threads=1)
OTHER_USER = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a program of another user")


@pytest.fixture
def place() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", 1024)


@pytest.fixture
def runtime(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the servers of a test."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    return place / "inference-bridge"


KINDS = ["managed", "rocm"]


def load(kind: str, path: Path, tmp_path: Path, program: str = REAL) -> ServerModel:
    """The model, managed or on rocm, with a shell script in the place of llama-server."""
    binary = tmp_path / "llama-server"
    script(binary, program)
    backend = LlamaServerBackend(binary)
    if kind == "rocm":
        backend = RocmBackend(binary, root=tree(tmp_path / "root", RX_6800))
    model = backend.load_model(str(path), SETTINGS)
    assert isinstance(model, ServerModel)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_program_that_listens_first_is_sent_nothing(kind: str, path: Path, tmp_path: Path, runtime: Path) -> None:
    """It takes the server's address as soon as the directory is there, and is as healthy as the server would be."""
    heard = tmp_path / "heard"
    model = load(kind, path, tmp_path, "exec sleep 60")
    with impostor(heard, runtime), model, pytest.raises(ib.ModelLoadError, match=r"process \d+ listens on the socket"):
        model.chat([{"role": "user", "content": SECRET}]).text()
    assert heard.read_bytes() == b""
    assert model.process.pid is None


async def test_program_that_listens_first_is_sent_nothing_asynchronously(
    path: Path, tmp_path: Path, runtime: Path
) -> None:
    heard = tmp_path / "heard"
    model = load("managed", path, tmp_path, "exec sleep 60")
    with impostor(heard, runtime), model, pytest.raises(ib.ModelLoadError, match="listens on the socket"):
        await model.agenerate(SECRET).text()
    assert heard.read_bytes() == b""


@pytest.mark.parametrize("kind", KINDS)
def test_program_that_takes_the_place_of_a_running_server_is_sent_nothing(
    kind: str, path: Path, tmp_path: Path, runtime: Path
) -> None:
    heard = tmp_path / "heard"
    with load(kind, path, tmp_path) as model:
        assert model.generate("abc", max_tokens=1).result().tokens
        (address,) = runtime.glob("*/server.sock")
        address.unlink()
        with impostor(heard, runtime):
            wait_until(address.exists)
            model.process.connect().close()  # earlier connections belong to the real server
            with pytest.raises(ib.ServerError, match="listens on the socket"):
                model.generate(SECRET, max_tokens=1).text()
            with pytest.raises(ib.ServerError, match="listens on the socket"):
                asyncio.run(model.agenerate(SECRET, max_tokens=1).text())
            with pytest.raises(ib.ServerError, match="listens on the socket"):
                model.count_tokens(SECRET)
    assert heard.read_bytes() == b""


def taken_by_other_user(path: Path) -> None:
    path.mkdir(0o777)
    path.chmod(0o777)
    os.chown(path, OTHER_USER, OTHER_USER)


def taken_by_a_link(path: Path) -> None:
    path.symlink_to(path.parent)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("taken", [pytest.param(taken_by_other_user, marks=needs_root), taken_by_a_link])
def test_server_whose_directory_another_user_made_first(
    taken: Callable[[Path], None],
    kind: str,
    path: Path,
    tmp_path: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server runs, its address is out of that user's reach, and it listens on no port."""
    place.chmod(0o1777)
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.setattr(directories, "_USUAL_PLACE", str(place))
    name = place / f"inference-bridge-{os.geteuid()}"
    taken(name)
    with short_directory() as shared, ExitStack() as running:
        shared.chmod(0o755)
        heard = shared / "heard"
        if os.geteuid() == 0:  # only root can switch to another user
            running.enter_context(impostor(heard, name, parent=os.getpid(), user=OTHER_USER))
        with load(kind, path, tmp_path) as model:
            assert model.generate(SECRET, max_tokens=1).result().tokens
            assert model.process.pid is not None
            server = psutil.Process(model.process.pid)
            assert not [one for one in server.net_connections("inet") if one.status == psutil.CONN_LISTEN]
            assert "--port" not in server.cmdline()
        assert not heard.exists() or heard.read_bytes() == b""
    assert sorted(path.name for path in name.glob("[pw]-*")) == []
