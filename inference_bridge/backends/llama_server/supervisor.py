# SPDX-License-Identifier: Apache-2.0
"""Runs one server for as long as its program needs it: a program of its own, that imports the standard library alone.

It is started with a socket as its standard input, from which it reads its plan, a line of JSON:

    command, env    the server's command line and environment
    directory       the server's own directory (mode 0700): its log is there, and all of it is removed at the end

The server runs for as long as that socket is open; the kernel closes it where the program was killed. That works alike
on Linux and macOS. The program is told in lines of JSON

    {"pid": …}                                   when the server was started
    {"exit": code or -signal, "log": "…"}        when the server ended, by itself or because it was told to
    {"error": "…"}                               when it could not be started
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

    With poll(), since select() fails for file descriptors above 1,023. A PollSelector has no descriptor of its own
    that a process with all its files in use could not get.
    """
    with selectors.PollSelector() as selector:
        for one in sockets:
            selector.register(one, selectors.EVENT_READ)
        return {key.fileobj for key, _ in selector.select(seconds)}


class Supervisor:
    def __init__(self, program: socket.socket, plan: dict[str, Any]) -> None:
        program.setblocking(False)
        self.program = program
        self.plan = plan
        self.directory: str = plan["directory"]
        self.ending = False
        self.log = os.open(os.path.join(self.directory, "log"), os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        # Signals end the waiting in poll(): this process has nothing else to do in between.
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
            told = self._serve()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
        self._tell(**told)  # whoever hears of the end finds nothing left

    def _serve(self) -> dict[str, Any]:
        """Start the server, and return what is to be said of its end."""
        try:
            self.server = self._start()
        except OSError as error:
            name = os.path.basename(self.plan["command"][0])
            return {"error": f"{name} can't be run: {error.strerror or error}"}
        try:
            self._tell(pid=self.server.pid)
            self._watch()
        finally:
            self._stop()
        return {"exit": self.server.returncode, "log": self._tail()}

    def _tell(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # gone, or it does not read
            self.program.sendall(json.dumps(message).encode() + b"\n")

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.plan["command"],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            env=self.plan["env"],
            cwd="/",
            process_group=0,  # with whatever it starts by itself: it may be a script around the real one
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - there is one thread
        )

    def _watch(self) -> None:
        """Return when the server has ended, or should."""
        while self.server.poll() is None and not self.ending:
            ready = readable([self.woken, self.program], 60.0)  # from time to time, to look at the log
            if self.woken in ready:
                self.woken.recv(4096)
            if self.program in ready and self._has_left():
                return
            self._bound_log()

    def _has_left(self) -> bool:
        try:
            return not self.program.recv(65536)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _stop(self) -> None:
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
        """The log's last lines."""
        size = os.fstat(self.log).st_size
        text = os.pread(self.log, LOG_TAIL, max(size - LOG_TAIL, 0)).decode("utf-8", "replace")
        if size > LOG_TAIL and "\n" in text.rstrip("\n"):
            text = text.partition("\n")[2]
        return text

    def _bound_log(self) -> None:
        size = os.fstat(self.log).st_size
        if size > LOG_LIMIT:
            kept = os.pread(self.log, LOG_LIMIT // 8, size - LOG_LIMIT // 8)
            os.ftruncate(self.log, 0)
            os.write(self.log, kept)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of one that has ended
        os.killpg(group, number)


def _die_with_parent() -> None:
    """Have the kernel kill the server, should this process be killed itself (PR_SET_PDEATHSIG, Linux only)."""
    _prctl(1, signal.SIGKILL)


_prctl: Any = None


def main() -> None:
    global _prctl  # noqa: PLW0603 - found here, since little is safe to do between fork and exec
    if sys.platform == "linux":  # pragma: no branch - macOS has no such call
        import ctypes

        _prctl = ctypes.CDLL(None).prctl
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the program, not its server
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
