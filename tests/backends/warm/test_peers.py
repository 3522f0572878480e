# SPDX-License-Identifier: Apache-2.0
"""Identification of the process at the other end of a socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from inference_bridge.backends.warm import peers

from ...parts.servers.managed import short_directory, wait_gone, wait_until

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


def test_server_process_that_listens_is_recognised(place: Path) -> None:
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


def test_unrelated_process_that_listens_is_recognised_by_its_process_id(place: Path) -> None:
    with listening(place / "s") as (stranger, _), connected(place / "s") as line:
        peers.check_user(line)
        for server in (os.getpid() + 1, 1 << 22):
            with pytest.raises(peers.WrongProcessError, match=f"process {stranger} "):
                peers.check_server(line, server)


def test_listener_that_has_ended_is_not_an_unrelated_process(place: Path) -> None:
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
            with pytest.raises(peers.WrongProcessError, match=f"of user {OTHER_USER}"):
                check(line)
