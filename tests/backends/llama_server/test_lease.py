# SPDX-License-Identifier: Apache-2.0
"""The line between a program and its server's supervisor, whichever end breaks first. Whole servers are elsewhere."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inference_bridge.backends.llama_server import lease as leases
from inference_bridge.backends.llama_server.lease import Lease


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_messages_of_a_supervisor(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    lease = Lease(ours)
    assert not lease.begun(0.0)
    theirs.sendall(b'{"pid": 7}\n{"exit"')
    assert lease.begun(5)
    assert (lease.pid, lease.over) == (7, False)
    theirs.sendall(b': 3, "log": "the end"}\n')
    assert lease.ended(5)
    assert (lease.exit, lease.log, lease.begun(0)) == (3, "the end", False)


def test_printable_keeps_text_in_any_script() -> None:
    assert (
        leases.printable("größer 模型 🙂\n\tx\r\n\x1b[0m\x7f\u202e")
        == "größer 模型 🙂\n        x\n\ufffd[0m\ufffd\ufffd"
    )


def test_a_server_that_can_not_be_started_leaves_no_socket_open(tmp_path: Path) -> None:
    """Its directory is removed before its log is opened."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(FileNotFoundError):
            leases.start(str(tmp_path / "gone"), ["true"], {})
        gc.collect()
    assert [str(one.message) for one in warned] == []


def test_a_supervisor_that_has_ended(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    lease = Lease(ours)
    theirs.close()
    assert lease.listen(5)
    assert lease.exit is None


def test_a_supervisor_with_malformed_messages_counts_as_ended(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    lease = Lease(ours)
    theirs.sendall(b"nonsense\n")
    assert lease.listen(5)


def test_a_lease_that_another_thread_closed(ends: tuple[socket.socket, socket.socket]) -> None:
    lease = Lease(ends[0])
    lease.close()
    lease.over = False
    assert lease.listen(5)


def test_a_message_read_by_another_thread_is_not_waited_for(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    lease = Lease(ours)

    @contextmanager
    def taken() -> Iterator[None]:
        ours.recv(100)
        yield

    lease._lock = taken()  # type: ignore[assignment]
    theirs.sendall(b"{}\n")
    assert not lease.listen(5)


# ---------------------------------------------------------------- the supervisor's end


def test_a_program_that_ends_before_it_sends_the_command(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    ours, theirs = ends
    process = subprocess.Popen([sys.executable, "-I", "-S", leases._SUPERVISOR], stdin=theirs.fileno(), cwd=tmp_path)
    ours.sendall(b'{"command": [')
    ours.close()
    assert process.wait(60) == 0
