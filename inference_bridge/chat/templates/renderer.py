# SPDX-License-Identifier: Apache-2.0
"""Renders chat templates in a process of their own, which the kernel limits in time and memory.

A template comes from a model's file, and in Jinja2 a short one can end the process, hang it
in a C function where no signal handler runs, or take all memory. So none renders in this
process. A worker process (`render_worker`) renders one after the other; it is started when
the first renderer is made, is shared by all, and ends with the last one, or with this
process however that ends. Data goes both ways through pipes that only the two processes have,
as JSON.

A render that takes too long, needs too much memory or crashes its worker is a LimitError;
the next render gets a new worker. While a worker is busy for long, further ones are started.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..._concurrency.background import waiting
from ..._concurrency.json_pieces import json_pieces
from . import render_worker as worker_program

SECONDS = 4.0
SECONDS_FOR_EACH_BYTE = 2e-6
"""Longest time of a render: SECONDS, and so much more for each byte of the request."""

MEMORY = 256 << 20
MEMORY_FOR_EACH_BYTE = 24
"""Address space of a worker in bytes: MEMORY, and so much more for each byte of the request."""

CHARACTERS = 1 << 24
CHARACTERS_FOR_EACH_BYTE = 32
"""Longest output: CHARACTERS, and so much more for each byte of the request."""

SOURCE_CHARACTERS = 1 << 17
"""Longest template."""

_START_SECONDS = 30.0
_MOST_WORKERS = 4
_KEPT_WORKERS = 2
_PATIENCE = 0.05
_KERNEL_LIMITS_MEMORY = sys.platform == "linux"
_PACKAGES = ("jinja2", "markupsafe")
# What the worker needs of the environment: the time zone and the language of dates. Keys stay here.
_VARIABLES = ("TZ", "LANG", "LC_ALL", "LC_TIME", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class RenderError(Exception):
    """A template did not render. The message says why."""


class RefusalError(RenderError):
    """The template refuses what it was given: it called `raise_exception`, and the message is its own."""


class FailureError(RenderError):
    """The template is not valid Jinja, or fails on what it was given."""


class LimitError(RenderError):
    """The template exceeded a limit, or ended the process it was rendered in."""


_ERRORS = {
    worker_program.REFUSED: RefusalError,
    worker_program.FAILED: FailureError,
    worker_program.LIMIT: LimitError,
}


class _WorkerEndedError(Exception):
    """The worker has ended, or its pipes are closed."""


class _Worker:
    """One worker process, and the pipes to it. One thread at a time uses it."""

    def __init__(self) -> None:
        if not sys.executable:
            raise LimitError("this program doesn't say which Python runs it (sys.executable), and none can be started")
        paths = []
        for name in _PACKAGES:
            spec = find_spec(name)
            if spec is None or spec.origin is None:
                raise ModuleNotFoundError(f"chat templates need the package {name}: pip install {name}", name=name)
            paths.append(str(Path(spec.origin).parent.parent))
        self._process = subprocess.Popen(
            # No site packages but these two, no variables: it starts in a third of the time, and runs nothing else.
            [sys.executable, "-I", "-S", str(Path(worker_program.__file__)), *dict.fromkeys(paths)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
            process_group=0,  # Ctrl-C in a terminal goes to this process's group
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in = self._process.stdin.fileno()
        self._out = self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        self._answered = False

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: bytes, seconds: float, memory: int) -> tuple[int, str]:
        """Send a request and wait for its reply. After a LimitError or _WorkerEndedError the worker is of no use."""
        begun = time.monotonic()
        deadline = begun + seconds + (0.0 if self._answered else _START_SECONDS)
        self._send(worker_program.REQUEST.pack(len(request)) + request, deadline, memory)
        header = self._receive(worker_program.REPLY.size, deadline, memory)
        status, length = worker_program.REPLY.unpack(header.encode("latin-1"))
        text = self._receive(length, deadline, memory, "utf-8")
        self._answered = True
        return status, text

    def _send(self, data: bytes, deadline: float, memory: int) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._in, select.POLLOUT, deadline, memory)
            try:
                view = view[os.write(self._in, view[: 1 << 20]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise _WorkerEndedError from None

    def _receive(self, length: int, deadline: float, memory: int, encoding: str = "latin-1") -> str:
        """`length` bytes as text, decoded in pieces: to decode much at once would hold up other threads."""
        decoder = codecs.getincrementaldecoder(encoding)("surrogatepass" if encoding == "utf-8" else "strict")
        parts = []
        while length:
            self._wait(self._out, select.POLLIN, deadline, memory)
            try:
                data = os.read(self._out, min(length, 1 << 18))
            except BlockingIOError:
                continue
            if not data:
                raise _WorkerEndedError
            length -= len(data)
            parts.append(decoder.decode(data))
        parts.append(decoder.decode(b"", True))
        return "".join(parts)

    def _wait(self, descriptor: int, event: int, deadline: float, memory: int) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise LimitError("it took too long")
            step = left if _KERNEL_LIMITS_MEMORY else min(left, 0.02)
            if poll.poll(step * 1000):
                return
            if not _KERNEL_LIMITS_MEMORY and _memory_of(self._process.pid) > memory:
                raise LimitError("it needed too much memory")

    def end(self) -> int:
        """Stop the process; its exit status."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        return self._process.wait()

    def died(self) -> LimitError:
        """The error for a render that ended the process."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = self.end()
        if code == -signal.SIGALRM:
            return LimitError("it took too long")
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return LimitError(f"it ended the process it was rendered in ({how})")

    def forget(self) -> None:
        """In a forked child: close this process's copies of the pipes, and leave the parent's worker alone."""
        self._process.returncode = 0
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


def _memory_of(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


class _Pool:
    """The workers of this process. They live as long as there are renderers."""

    def __init__(self) -> None:
        self.reset()
        # Added to and taken from in one step each: a finalizer may run at any point of another method.
        self._users: set[object] = set()

    def reset(self) -> None:
        self._changed = threading.Condition()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()

    def after_fork(self) -> None:
        workers = self._all
        self.reset()
        for worker in workers:
            worker.forget()

    def acquire(self) -> object:
        user = object()
        self._users.add(user)
        return user

    def release(self, user: object) -> None:
        with self._changed:
            self._users.discard(user)
            ended = [] if self._users else self._idle
            if ended:
                self._idle = []
                self._all -= set(ended)
        for worker in ended:
            worker.end()

    def end(self) -> None:
        """At the end of the program, whether or not renderers are left."""
        with self._changed:
            ended, self._all, self._idle = self._all, set(), []
        for worker in ended:
            worker.end()

    def take(self, deadline: float) -> _Worker:
        """An idle worker; a new one where there is none, or where the others stay busy."""
        patience = time.monotonic() + _PATIENCE
        with self._changed:
            while True:
                while self._idle:
                    worker = self._idle.pop()
                    if worker.running:
                        return worker
                    self._all.discard(worker)
                    worker.end()
                now = time.monotonic()
                if not self._all or (now >= patience and len(self._all) < _MOST_WORKERS):
                    worker = _Worker()
                    self._all.add(worker)
                    return worker
                if now >= deadline:
                    raise LimitError("other templates are being rendered: none had finished in time")
                self._changed.wait(min(deadline, patience if now < patience else deadline) - now)

    def give_back(self, worker: _Worker, usable: bool) -> None:
        with self._changed:
            keeps = usable and bool(self._users) and len(self._idle) < _KEPT_WORKERS and worker in self._all
            if keeps:
                self._idle.append(worker)
            else:
                self._all.discard(worker)
            self._changed.notify()
        if not keeps:
            worker.end()


_pool = _Pool()
atexit.register(_pool.end)
os.register_at_fork(after_in_child=_pool.after_fork)


class Renderer:
    """Renders one chat template. Thread-safe.

    Args:
        source: The template, Jinja as Hugging Face's transformers renders it.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._undeclared: frozenset[str] | RenderError | None = None
        self._compiling = threading.Lock()
        if len(source) > SOURCE_CHARACTERS:
            raise LimitError(f"it is longer than {SOURCE_CHARACTERS} characters")
        self._release = weakref.finalize(self, _pool.release, _pool.acquire())
        self._release.atexit = False

    def close(self) -> None:
        """Stop the workers if no other renderer is in use. May be called twice.

        A render that comes later has a worker to itself, which ends with it.
        """
        self._release()

    def undeclared(self) -> frozenset[str]:
        """The names of the variables that the template reads and doesn't set. Compiles the template, once.

        Raises:
            FailureError: The template is not valid Jinja.
            LimitError: It exceeds a limit.
        """
        with self._compiling:
            if self._undeclared is None:
                try:
                    self._undeclared = frozenset(json.loads(self._ask({}, SECONDS)))
                except RenderError as error:
                    self._undeclared = error
            if isinstance(self._undeclared, RenderError):
                raise self._undeclared
            return self._undeclared

    def render(self, variables: Mapping[str, Any], seconds: float | None = None) -> str:
        """Render the template.

        Args:
            variables: What JSON can hold, by the names that the template uses.
            seconds: The longest time that it may take, if less than its limit.

        Raises:
            RefusalError: The template called `raise_exception`.
            FailureError: It is not valid Jinja, or fails on these variables.
            LimitError: It exceeds a limit.
        """
        return self._ask({"variables": dict(variables)}, seconds)

    def _ask(self, request: Mapping[str, Any], seconds: float | None) -> str:
        begun = time.monotonic()
        body = _dumped(dict(request) | {"source": self._source})
        longest = SECONDS + SECONDS_FOR_EACH_BYTE * len(body)
        deadline = begun + (longest if seconds is None else min(seconds, longest))
        memory = MEMORY + MEMORY_FOR_EACH_BYTE * len(body)
        characters = CHARACTERS + CHARACTERS_FOR_EACH_BYTE * len(body)
        with waiting():
            worker = _pool.take(deadline)
            usable = False
            try:
                left = max(deadline - time.monotonic(), 0.001)
                most = memory if _KERNEL_LIMITS_MEMORY else None
                limits = {"seconds": left, "memory": most, "characters": characters}
                status, text = worker.ask(_dumped(limits)[:-1] + b", " + body[1:], left + 0.1, memory)
                usable = status != worker_program.LIMIT
            except _WorkerEndedError:
                raise worker.died() from None
            finally:
                _pool.give_back(worker, usable)
        if status != worker_program.DONE:
            raise _ERRORS[status](text)
        return text


def _dumped(value: Mapping[str, Any]) -> bytes:
    return b"".join(piece.encode("utf-8", "surrogatepass") for piece in json_pieces(value))
