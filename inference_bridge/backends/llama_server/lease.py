# SPDX-License-Identifier: Apache-2.0
"""Our end of the line to a server's supervisor: while it is open, the server runs."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from .supervisor import GRACE, readable

_SUPERVISOR = str(Path(__file__).with_name("supervisor.py"))


def printable(text: str) -> str:
    """Return `text` with U+FFFD in place of each character that a terminal may act on, except the ends of lines."""
    lines = text.expandtabs().splitlines()
    return "\n".join("".join(one if one.isprintable() else "\ufffd" for one in line) for line in lines)


class Lease:
    """Holds a server, and is told how it is. Every method may be called from any thread.

    pid     the server's, once it is known
    exit    its exit code, or the negative signal that ended it
    log     the last lines of its log, once it has ended
    error   why it could not be started
    over    whether it has ended, however that came about
    """

    def __init__(self, line: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        line.setblocking(True)
        self.pid: int | None = None
        self.exit: int | None = None
        self.log = ""
        self.error: str | None = None
        self.over = False
        self._line = line
        self._process = process
        self._received = b""
        self._lock = threading.RLock()
        _leases.add(self)

    def listen(self, seconds: float = 0.0) -> bool:
        """Take in what the supervisor says, waiting at most `seconds` for it. Returns `over`."""
        try:
            if not self.over and readable([self._line], seconds):
                with self._lock:
                    self._take(self._line.recv(1 << 20, socket.MSG_DONTWAIT))
        except BlockingIOError:  # another thread was first
            pass
        except (OSError, ValueError):  # reset, or closed by another thread
            self.over = True
        return self.over

    def _take(self, data: bytes) -> None:
        self._received += data
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "pid" in message:
                self.pid = message["pid"]
            else:
                self.exit, self.log = message.get("exit"), printable(message.get("log", ""))
                self.error = message.get("error")
                self.over = True
        if not data:
            self.over = True

    def begun(self, seconds: float) -> bool:
        """Wait for the server to be started. False: it was not, within `seconds`."""
        end = time.monotonic() + seconds
        while self.pid is None and not self.over and (left := end - time.monotonic()) > 0:
            self.listen(left)
        return self.pid is not None and not self.over

    def ended(self, seconds: float) -> bool:
        """Wait for the server to end. False: it did not, within `seconds`."""
        end = time.monotonic() + seconds
        while not self.over and (left := end - time.monotonic()) > 0:
            self.listen(left)
        return self.over

    def close(self) -> None:
        """End the server, and wait until it has ended. Idempotent."""
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_WR)
        process, self._process = self._process, None
        if process is not None:
            try:
                process.wait(GRACE + 5)
            except subprocess.TimeoutExpired:  # it is stopped, or starved: the kernel takes its server along
                process.kill()
                process.wait()
            self.listen()
        self.over = True
        self._line.close()

    def forget(self) -> None:
        """In a forked child: it is the parent's."""
        self._line.close()
        self.over = True
        self.leave()

    def leave(self) -> None:
        """Have the supervisor, a child process, outlive this object."""
        if self._process is not None:
            self._process.returncode = 0  # else Popen warns, when it is dropped, that it still runs


_leases: weakref.WeakSet[Lease] = weakref.WeakSet()


def _forget_all() -> None:
    for lease in list(_leases):
        lease.forget()


def _leave_all() -> None:
    """At exit. The lines stay open, since threads may still be reading answers: the kernel closes them."""
    for lease in list(_leases):
        lease.leave()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_forget_all)
atexit.register(_leave_all)


def start(directory: str, command: Sequence[str], environment: Mapping[str, str]) -> Lease:
    """Start a server under a supervisor, which removes `directory` at the end. It ends with the lease."""
    plan = {"command": list(command), "env": dict(environment), "directory": directory}
    line, other_end = socket.socketpair()
    try:
        with other_end, open(os.path.join(directory, "log"), "ab", opener=_private) as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", _SUPERVISOR],
                stdin=other_end.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # beyond the reach of the terminal's Ctrl-C
                cwd="/",
            )
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # told below, as an end
                line.sendall(json.dumps(plan).encode() + b"\n")
    except BaseException:
        line.close()
        raise
    return Lease(line, process)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
