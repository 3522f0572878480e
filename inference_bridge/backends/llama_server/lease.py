# SPDX-License-Identifier: Apache-2.0
"""This process's end of the connection to a server's supervisor. The server runs while the connection is open."""

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
    """Return `text` with U+FFFD in place of each control character that a terminal may interpret, except line ends."""
    lines = text.expandtabs().splitlines()
    return "\n".join("".join(one if one.isprintable() else "\ufffd" for one in line) for line in lines)


class Lease:
    """Keeps a server running, and receives its state from the supervisor. Thread-safe.

    Attributes:
        pid: The server's process id. None: it is not known yet.
        exit: Its exit code, or the negative signal that ended it. None: it has not ended, or this is not known.
        log: The last lines of its log, once it has ended.
        error: Why it could not be started, or None.
        over: Whether it has ended, for any reason.
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
        """Read the messages of the supervisor, and wait up to `seconds` for one. Return `over`."""
        try:
            if not self.over and readable([self._line], seconds):
                with self._lock:
                    self._take(self._line.recv(1 << 20, socket.MSG_DONTWAIT))
        except BlockingIOError:  # another thread has read the message
            pass
        except (OSError, ValueError):  # the connection was reset, or another thread has closed it
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
        """Wait until the server is started. Return False if it is not within `seconds`, or has ended."""
        end = time.monotonic() + seconds
        while self.pid is None and not self.over and (left := end - time.monotonic()) > 0:
            self.listen(left)
        return self.pid is not None and not self.over

    def ended(self, seconds: float) -> bool:
        """Wait for the end of the server. Return False if it does not end within `seconds`."""
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
            except subprocess.TimeoutExpired:  # it is suspended or gets no CPU time; on Linux its server ends with it
                process.kill()
                process.wait()
            self.listen()
        self.over = True
        self._line.close()

    def forget(self) -> None:
        """Close the child's copy of the connection after a fork: the server belongs to the parent."""
        self._line.close()
        self.over = True
        self.leave()

    def leave(self) -> None:
        """Let the supervisor, a child process, run on when this object is freed."""
        if self._process is not None:
            self._process.returncode = 0  # otherwise Popen would warn that its process still runs


_leases: weakref.WeakSet[Lease] = weakref.WeakSet()


def _forget_all() -> None:
    for lease in list(_leases):
        lease.forget()


def _leave_all() -> None:
    """At exit, leave the connections open, because threads may still read answers. The kernel closes them."""
    for lease in list(_leases):
        lease.leave()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_forget_all)
atexit.register(_leave_all)


def start(directory: str, command: Sequence[str], environment: Mapping[str, str]) -> Lease:
    """Start a server with a supervisor, which ends the server when the lease is closed.

    Args:
        directory: The server's directory, which the supervisor removes at the end.
        command: The server's command line.
        environment: The server's environment variables.

    Returns:
        The lease.

    Raises:
        OSError: The supervisor can't be started.
    """
    plan = {"command": list(command), "env": dict(environment), "directory": directory}
    line, other_end = socket.socketpair()
    try:
        with other_end, open(os.path.join(directory, "log"), "ab", opener=_private) as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", _SUPERVISOR],
                stdin=other_end.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # so that Ctrl-C in the terminal does not end it
                cwd="/",
            )
            # If the supervisor has already ended, the lease reports that as the end of the server.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                line.sendall(json.dumps(plan).encode() + b"\n")
    except BaseException:
        line.close()
        raise
    return Lease(line, process)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
