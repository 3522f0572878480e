# SPDX-License-Identifier: Apache-2.0
"""Which process is at the other end of a socket, and programs that pose as a server."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

import inference_bridge as ib
from inference_bridge import LoadConfig
from inference_bridge.backends.llama_server import warm
from inference_bridge.backends.llama_server.backend import LlamaServerBackend
from inference_bridge.backends.llama_server.model import ServerModel
from inference_bridge.backends.llama_server.rocm import RocmBackend
from inference_bridge.backends.warm import directories, peers

from ...parts.managed import REAL, script, short_directory, wait_gone, wait_until
from ...parts.poser import posing
from ...parts.tiny_gguf import write_llama
from ..llama_server.test_rocm import RX_6800, tree

SECRET = "My secret is 8h3k2."
SETTINGS = LoadConfig(context_length=512, parallel_slots=1, threads=1)
OTHER_USER = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a program of another user")

# ---------------------------------------------------------------- sockets

LISTEN = """
import os, socket, sys, time
line = socket.socket(socket.AF_UNIX)
line.bind(sys.argv[1])
line.listen()
print(os.getpid(), flush=True)
time.sleep(60)
"""
THROUGH_ANOTHER = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {LISTEN!r}, sys.argv[1]], process_group=int(sys.argv[2]))
"""


@contextmanager
def listening(path: Path, code: str = LISTEN, *arguments: str) -> Iterator[tuple[int, int]]:
    """A program that listens at `path`: its process id, and that of the process which listens."""
    command = [sys.executable, "-c", code, str(path), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0) as process:
        assert process.stdout is not None
        listener = int(process.stdout.readline())
        try:
            yield process.pid, listener
        finally:
            for pid in {process.pid, listener}:
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()


@pytest.fixture
def place() -> Iterator[Path]:
    with short_directory() as path:
        yield path


def connected(path: Path) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    line.connect(str(path))
    return line


def test_server_that_listens_itself(place: Path) -> None:
    with listening(place / "s") as (server, _), connected(place / "s") as line:
        peers.check_user(line)
        peers.check_server(line, server)


@pytest.mark.parametrize("group", ["-1", "0"], ids=["in its group", "in a group of its own"])
def test_server_whose_child_listens(group: str, place: Path) -> None:
    """As where a script starts llama-server and waits for it."""
    code = THROUGH_ANOTHER.replace("process_group=int(sys.argv[2])", "") if group == "-1" else THROUGH_ANOTHER
    with listening(place / "s", code, group) as (server, listener), connected(place / "s") as line:
        assert listener != server
        peers.check_server(line, server)


def test_stranger_that_listens_is_told_by_its_process_id(place: Path) -> None:
    with listening(place / "s") as (stranger, _), connected(place / "s") as line:
        peers.check_user(line)
        for server in (os.getpid() + 1, 1 << 22):
            with pytest.raises(peers.StrangerError, match=f"process {stranger} "):
                peers.check_server(line, server)


def test_listener_that_has_ended_is_no_stranger(place: Path) -> None:
    with listening(place / "s", THROUGH_ANOTHER, "0") as (server, listener), connected(place / "s") as line:
        os.kill(server, 9)
        os.kill(listener, 9)
        wait_gone(listener)
        wait_until(lambda: not psutil.pid_exists(listener))
        with pytest.raises(ConnectionResetError):
            peers.check_server(line, server)


@needs_root
def test_other_user_that_listens(place: Path) -> None:
    place.chmod(0o777)
    code = LISTEN.replace("line =", f"os.setuid({OTHER_USER}); line =")
    with listening(place / "s", code) as (server, _), connected(place / "s") as line:
        for check in (peers.check_user, lambda line: peers.check_server(line, server)):
            with pytest.raises(peers.StrangerError, match=f"of user {OTHER_USER}"):
                check(line)


# ---------------------------------------------------------------- servers


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", 1024)


@pytest.fixture
def runtime(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the servers of a test are, all of which end with it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    yield place / "inference-bridge"
    for server in warm.servers():
        warm.stop(server.id)


KINDS = ["managed", "warm", "rocm"]


def load(kind: str, path: Path, tmp_path: Path, program: str = REAL) -> ServerModel:
    """The model, managed, kept alive or on rocm, with a shell script in the place of llama-server."""
    binary = tmp_path / "llama-server"
    if not binary.exists():  # written again it would be another program, with another warm server
        script(binary, program)
    backend = LlamaServerBackend(binary)
    if kind == "rocm":
        backend = RocmBackend(binary, root=tree(tmp_path / "root", RX_6800))
    model = backend.load_model(str(path), SETTINGS.with_options({"keep_alive": 60.0} if kind == "warm" else {}))
    assert isinstance(model, ServerModel)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_program_that_listens_first_is_sent_nothing(kind: str, path: Path, tmp_path: Path, runtime: Path) -> None:
    """It takes the server's address as soon as the directory is there, and is as healthy as the server would be."""
    heard = tmp_path / "heard"
    model = load(kind, path, tmp_path, "exec sleep 60")
    with posing(heard, runtime), model, pytest.raises(ib.ModelLoadError, match=r"process \d+ listens on the socket"):
        model.chat([{"role": "user", "content": SECRET}]).text()
    assert heard.read_bytes() == b""
    assert model.process.pid is None


async def test_program_that_listens_first_is_sent_nothing_asynchronously(
    path: Path, tmp_path: Path, runtime: Path
) -> None:
    heard = tmp_path / "heard"
    model = load("managed", path, tmp_path, "exec sleep 60")
    with posing(heard, runtime), model, pytest.raises(ib.ModelLoadError, match="listens on the socket"):
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
        with posing(heard, runtime):
            wait_until(address.exists)
            model.process.connect().close()  # what was opened before is the server's own
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
        if os.geteuid() == 0:  # else there is no other user to pose as
            running.enter_context(posing(heard, name, parent=os.getpid(), user=OTHER_USER))
        with load(kind, path, tmp_path) as model:
            assert model.generate(SECRET, max_tokens=1).result().tokens
            assert model.process.pid is not None
            server = psutil.Process(model.process.pid)
            assert not [one for one in server.net_connections("inet") if one.status == psutil.CONN_LISTEN]
            assert "--port" not in server.cmdline()
            if kind == "warm":
                pid = model.process.pid
                with load(kind, path, tmp_path) as other:  # which is found there
                    other.generate(SECRET, max_tokens=1).text()
                    assert other.process.pid == pid
                (found,) = warm.servers()
                assert found.pid == pid
                assert warm.stop(found.id)
        assert not heard.exists() or heard.read_bytes() == b""
    assert sorted(path.name for path in name.glob("[pw]-*")) == []


@needs_root
def test_supervisor_of_another_user_is_not_asked(
    path: Path, tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer would say which process to trust."""
    with load("warm", path, tmp_path) as model:
        model.generate(SECRET, max_tokens=1).text()
        (server,) = warm.servers()
        with monkeypatch.context() as other:
            other.setattr(peers, "_credentials", lambda line: (server.pid, OTHER_USER))
            assert warm.servers() == []
            assert not warm.stop(server.id)
        assert warm.stop(server.id)
