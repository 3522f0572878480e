# SPDX-License-Identifier: Apache-2.0
"""Runs one server for as long as anybody needs it: a program of its own, that imports the standard library alone.

It is started with a socket as its standard input, from which it reads its plan, a line of JSON:

    command, env    the server's command line and environment
    directory       the server's own directory (mode 0700): its log lies there, and all of it is removed at the end
    keep_alive      seconds that the server lives on without a lease; above 0 it outlives the program that
                    started it, and listens on `directory`/control for others that want it
    about           what it tells whoever asks

That socket is the first lease. Who holds one holds the server: a lease ends when it is closed, by the
kernel too, where its holder was killed. That works alike on Linux and macOS. Each lease is told in lines of JSON

    {"pid": …, "keep_alive": …, "about": …, …}   when it begins
    {"exit": code or -signal, "log": "…"}        when the server ended, by itself or because it was told to
    {"error": "…"}                               when it could not be started

A connection to `control` begins with a line of JSON: {"do": "lease", "keep_alive": …}, {"do": "list"} or
{"do": "stop"}. The first stays open, a lease; the answer to the others is the first line above, and the end.
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
import time
from collections.abc import Iterable
from typing import Any

GRACE = 5.0
"""Seconds between TERM and KILL."""

LOG_LIMIT = 4 << 20
LOG_TAIL = 4096
_LINE_LIMIT = 1 << 20


def readable(sockets: Iterable[socket.socket], seconds: float) -> set[Any]:
    """Wait until one of `sockets` can be read, or `seconds` have passed, and return those that can.

    With poll(), since select() fails for file descriptors above 1,023. A PollSelector has no descriptor of its own
    that a process with all its files in use could not get.
    """
    with selectors.PollSelector() as selector:
        for one in sockets:
            selector.register(one, selectors.EVENT_READ)
        return {key.fileobj for key, _ in selector.select(seconds)}


class Client:
    """One connection: the first lease, or one that came in through `control`."""

    def __init__(self, connection: socket.socket, leases: bool = False) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.leases = leases
        self.received = b""

    def lines(self) -> list[bytes] | None:
        """The lines that arrived; None when the other side is gone, or talks nonsense."""
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            return None
        self.received += data
        *lines, self.received = self.received.split(b"\n")
        return lines if data and len(self.received) <= _LINE_LIMIT else None

    def tell(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # gone, or it does not read
            self.socket.sendall(json.dumps(message).encode() + b"\n")


class Supervisor:
    def __init__(self, first: Client, plan: dict[str, Any]) -> None:
        self.clients = [first]
        self.plan = plan
        self.directory: str = plan["directory"]
        self.keep_alive = float(plan["keep_alive"])
        self.started = time.time()
        self.idle_since = time.monotonic()
        self.control: socket.socket | None = None
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
            if self.keep_alive:
                self._listen()
            told = self._serve()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
        for client in self.clients:  # who hears of the end finds nothing left
            client.tell(**told)

    def _serve(self) -> dict[str, Any]:
        """Start the server, and return what is to be said of its end."""
        try:
            self.server = self._start()
        except OSError as error:
            name = os.path.basename(self.plan["command"][0])
            return {"error": f"{name} can't be run: {error.strerror or error}"}
        try:
            self._tell_of_the_server(self.clients[0])
            self._watch()
        finally:
            self._stop()
        return {"exit": self.server.returncode, "log": self._tail()}

    def _listen(self) -> None:
        # Bound by its name alone: a socket's path is short of room.
        os.chdir(self.directory)
        self.control = socket.socket(socket.AF_UNIX)
        self.control.bind("control")
        self.control.listen(16)
        self.control.setblocking(False)
        os.chdir("/")

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
            if any(client.leases for client in self.clients):
                self.idle_since = time.monotonic()
                wait = 60.0  # from time to time, to look at the log
            else:
                wait = self.idle_since + self.keep_alive - time.monotonic()
                if wait <= 0:
                    return
            sources: list[Any] = [self.woken, *(client.socket for client in self.clients)]
            if self.control is not None:
                sources.append(self.control)
            ready = readable(sources, min(wait, 60.0))
            if self.woken in ready:
                self.woken.recv(4096)
            for client in [client for client in self.clients if client.socket in ready]:
                self._hear(client)
            if self.control in ready:
                self._accept()
            self._bound_log()

    def _accept(self) -> None:
        assert self.control is not None
        with contextlib.suppress(OSError):
            self.clients.append(Client(self.control.accept()[0]))

    def _hear(self, client: Client) -> None:
        lines = client.lines()
        for line in lines or ():
            try:
                request = json.loads(line)
                wish = request["do"]
                if wish == "lease":
                    self.keep_alive = float(request["keep_alive"])
                    client.leases = True
            except (ValueError, TypeError, KeyError):
                lines = None
                break
            self._tell_of_the_server(client)
            if wish == "stop":
                self.ending = True  # it stays connected, and sees the end
        if lines is None:
            self.clients.remove(client)
            client.socket.close()

    def _tell_of_the_server(self, client: Client) -> None:
        leases = sum(one.leases for one in self.clients)
        client.tell(
            pid=self.server.pid,
            supervisor=os.getpid(),
            started=self.started,
            keep_alive=self.keep_alive,
            users=leases,
            idle=0.0 if leases else time.monotonic() - self.idle_since,
            about=self.plan["about"],
        )

    def _stop(self) -> None:
        if self.control is not None:  # whoever comes from now on starts a server of their own
            self.control.close()
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.directory, "control"))
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
    if plan["keep_alive"] and os.fork():
        os._exit(0)  # the rest is nobody's child: the program that started it may end before it
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    Supervisor(Client(first, leases=True), plan).run()


if __name__ == "__main__":
    main()
