# SPDX-License-Identifier: Apache-2.0
"""The supervisor: a separate process that runs one server until the program that uses it ends.

It imports only the standard library. Its standard input is a socket, from which it reads one line of JSON:

    command, env    the server's command line and environment
    directory       the server's own directory (mode 0700), which has its log and is removed at the end

The server runs until the socket is closed. The kernel closes it if the program is killed, on Linux and on macOS. The
supervisor sends lines of JSON to the program:

    {"pid": …}                                   the server was started
    {"exit": code or -signal, "log": "…"}        the server has ended, by itself or because it was stopped
    {"error": "…"}                               the server could not be started
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

GRACE = 5.0
"""Seconds between TERM and KILL."""

LOG_LIMIT = 4 << 20
LOG_TAIL = 4096


def readable(sockets: Iterable[socket.socket], seconds: float) -> set[Any]:
    """Wait until one of `sockets` can be read, or `seconds` have passed, and return those that can.

    It uses poll(), because select() fails for file descriptors above 1,023. A PollSelector needs no file descriptor,
    unlike other selectors, so it also works in a process that has no free one.
    """
    with selectors.PollSelector() as selector:
        for one in sockets:
            selector.register(one, selectors.EVENT_READ)
        return {key.fileobj for key, _ in selector.select(seconds)}


class Supervisor:
    """Runs one server.

    Args:
        program: The socket to the program.
        plan: The JSON object: see above.
    """

    def __init__(self, program: socket.socket, plan: dict[str, Any]) -> None:
        program.setblocking(False)
        self.program = program
        self.plan = plan
        self.directory: str = plan["directory"]
        self.ending = False
        self.log = os.open(os.path.join(self.directory, "log"), os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        # A signal writes to this socket, which ends the wait in poll().
        self.woken, waker = socket.socketpair()
        self.woken.setblocking(False)
        waker.setblocking(False)
        self._waker = waker
        signal.set_wakeup_fd(waker.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._end)

    def _end(self, *_: object) -> None:
        self.ending = True

    def run(self) -> None:
        try:
            message = self._serve()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
        self._report(**message)  # after the directory was removed, so that nothing is left when the program reads this

    def _serve(self) -> dict[str, Any]:
        """Run the server, and return the message about its end."""
        try:
            self.server = self._start()
        except OSError as error:
            name = os.path.basename(self.plan["command"][0])
            return {"error": f"{name} can't be run: {error.strerror or error}"}
        try:
            self._report(pid=self.server.pid)
            self._watch()
        finally:
            self._stop()
        return {"exit": self.server.returncode, "log": self._tail()}

    def _report(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # the program has ended, or does not read
            self.program.sendall(json.dumps(message).encode() + b"\n")

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.plan["command"],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            env=self.plan["env"],
            cwd="/",
            process_group=0,  # a group with its own children, because it may be a script that starts the real server
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - there is one thread
        )

    def _watch(self) -> None:
        """Wait until the server has ended, or has to be stopped."""
        while self.server.poll() is None and not self.ending:
            ready = readable([self.woken, self.program], 60.0)  # with a timeout, because the log's size is checked
            if self.woken in ready:
                self.woken.recv(4096)
            if self.program in ready and self._is_closed():
                return
            self._bound_log()

    def _is_closed(self) -> bool:
        """Return whether the program has closed the socket."""
        try:
            return not self.program.recv(65536)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _stop(self) -> None:
        """Send TERM to the server, and KILL to its process group when it has ended, at most `GRACE` seconds later."""
        group = self.server.pid
        if self.server.poll() is None:
            _signal_group(group, signal.SIGTERM)
            try:
                self.server.wait(GRACE)
            except subprocess.TimeoutExpired:
                pass
        _signal_group(group, signal.SIGKILL)
        self.server.wait()

    def _tail(self) -> str:
        """Return the last lines of the log."""
        size = os.fstat(self.log).st_size
        text = os.pread(self.log, LOG_TAIL, max(size - LOG_TAIL, 0)).decode("utf-8", "replace")
        if size > LOG_TAIL and "\n" in text.rstrip("\n"):
            text = text.partition("\n")[2]
        return text

    def _bound_log(self) -> None:
        """Keep only the end of the log if it is larger than `LOG_LIMIT`."""
        size = os.fstat(self.log).st_size
        if size > LOG_LIMIT:
            kept = os.pread(self.log, LOG_LIMIT // 8, size - LOG_LIMIT // 8)
            os.ftruncate(self.log, 0)
            os.write(self.log, kept)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: PermissionError for a group that has ended
        os.killpg(group, number)


def _die_with_parent() -> None:
    """Make the kernel kill the server if this process is killed (PR_SET_PDEATHSIG, Linux only)."""
    _prctl(1, signal.SIGKILL)


_prctl: Any = None


def main() -> None:
    global _prctl  # noqa: PLW0603 - looked up here, because few operations are safe between fork and exec
    if sys.platform == "linux":  # pragma: no branch - macOS has no such call
        import ctypes

        _prctl = ctypes.CDLL(None).prctl
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is meant for the program, not its server
    first = socket.socket(fileno=os.dup(0))
    text = b""
    while not text.endswith(b"\n"):
        data = first.recv(65536)
        if not data:
            return
        text += data
    plan = json.loads(text)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    Supervisor(first, plan).run()


if __name__ == "__main__":
    main()
