# SPDX-License-Identifier: Apache-2.0
"""Renders chat templates in worker processes, whose time and memory the kernel limits.

A template comes from a model's file and is not trusted: a short Jinja2 template can end the
process, block it in a C function where no signal handler runs, or use up all memory. So no
template is rendered in this process. A worker process (`render_worker`) renders one template
after the other. All renderers share the workers. The first request starts a worker, and all workers
end when the last renderer is closed or when this process ends for any reason. Requests and replies
are sent through two pipes that only this process and the worker have open.

A render that takes too long, needs too much memory or crashes its worker raises LimitError, and
the next render gets a new worker. If all workers stay busy for _SECONDS_BEFORE_ANOTHER, another
worker is started, up to _MAX_WORKERS.
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
"""Maximum processor time of a render in seconds: SECONDS, plus SECONDS_FOR_EACH_BYTE for each byte of the request."""

ELAPSED_FACTOR = 15
"""Maximum elapsed time of a render, as a multiple of its maximum processor time. On a busy machine, a worker waits
for a processor, and that is not the template's fault."""

MEMORY = 256 << 20
MEMORY_FOR_EACH_BYTE = 24
"""Maximum address space of a worker in bytes: MEMORY, plus MEMORY_FOR_EACH_BYTE for each byte of the request."""

CHARACTERS = 1 << 24
CHARACTERS_FOR_EACH_BYTE = 32
"""Maximum length of the output: CHARACTERS, plus CHARACTERS_FOR_EACH_BYTE for each byte of the request."""

SOURCE_CHARACTERS = 1 << 17
"""Maximum length of a template."""

_START_SECONDS = 30.0
_MAX_WORKERS = 4
_MAX_IDLE_WORKERS = 2
_SECONDS_BEFORE_ANOTHER = 0.05
_KERNEL_LIMITS_MEMORY = sys.platform == "linux"
_PACKAGES = ("jinja2", "markupsafe")
# The worker gets only these environment variables: time zone, language of dates, library paths. It gets no API keys.
_VARIABLES = ("TZ", "LANG", "LC_ALL", "LC_TIME", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class RenderError(Exception):
    """A template did not render. The message says why."""


class RefusalError(RenderError):
    """The template refused its input: it called `raise_exception` with this message."""


class FailureError(RenderError):
    """The template is not valid Jinja, or failed on its input."""


class LimitError(RenderError):
    """The template exceeded a limit, or ended the process in which it was rendered."""


_ERRORS = {
    worker_program.REFUSED: RefusalError,
    worker_program.FAILED: FailureError,
    worker_program.LIMIT: LimitError,
}


class Budget:
    """A limit of processor time for several renders together. Only one thread at a time may use it.

    Attributes:
        left: The seconds of processor time that are left.
    """

    def __init__(self, seconds: float) -> None:
        self.left = seconds


class _WorkerEndedError(Exception):
    """The worker has ended, or its pipes are closed."""


class _Worker:
    """One worker process, and the pipes to it. Only one thread at a time may use it.

    Raises:
        LimitError: The path of the Python interpreter is not known, so that no process can be started.
        ModuleNotFoundError: Jinja2 or MarkupSafe is not installed.
    """

    def __init__(self) -> None:
        if not sys.executable:
            raise LimitError("sys.executable is empty, so no Python process can be started to render the template")
        paths = []
        for name in _PACKAGES:
            spec = find_spec(name)
            if spec is None or spec.origin is None:
                raise ModuleNotFoundError(f"chat templates need the package {name}: pip install {name}", name=name)
            paths.append(str(Path(spec.origin).parent.parent))
        self._process = subprocess.Popen(
            # -S and the paths: only these two packages are importable. The start is three times as fast, and no .pth
            # file runs.
            [sys.executable, "-I", "-S", str(Path(worker_program.__file__)), *dict.fromkeys(paths)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
            process_group=0,  # a separate group, so that Ctrl-C in the terminal does not reach the worker
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

    def ask(self, request: bytes, seconds: float, memory: int) -> tuple[int, float, str]:
        """Send a request, and return the reply: its status, the processor time in seconds, and its text.

        The worker must not be used again after an error.

        Raises:
            LimitError: The reply did not arrive in time, or the worker needed too much memory.
            _WorkerEndedError: The worker has ended.
        """
        begun = time.monotonic()
        deadline = begun + seconds + (0.0 if self._answered else _START_SECONDS)
        self._send(worker_program.REQUEST.pack(len(request)) + request, deadline, memory)
        header = self._receive(worker_program.REPLY.size, deadline, memory)
        status, used, length = worker_program.REPLY.unpack(header.encode("latin-1"))
        text = self._receive(length, deadline, memory, "utf-8")
        self._answered = True
        return status, used, text

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
        """Receive `length` bytes as text. Decode them in pieces: decoding all of them at once blocks other threads."""
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
        """Wait for an event of a pipe. Raises LimitError at the deadline, or if the worker needs too much memory."""
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
        """Stop the process, and return its exit status."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        return self._process.wait()

    def died(self) -> LimitError:
        """Return the error for a render that ended the process. Release the process and its pipes."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = self.end()
        if code in (-signal.SIGALRM, -signal.SIGPROF):
            return LimitError("it took too long")
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return LimitError(f"it ended the process it was rendered in ({how})")

    def forget(self) -> None:
        """Close this process's copies of the pipes. Called in a forked child: the worker belongs to the parent."""
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
    """The workers of this process. They are kept while a renderer is open."""

    def __init__(self) -> None:
        self.reset()
        # A finalizer may call `release` while another method runs, so each change must be one atomic operation.
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
        """Stop all workers, even if renderers are open: the program ends."""
        with self._changed:
            ended, self._all, self._idle = self._all, set(), []
        for worker in ended:
            worker.end()

    def take(self, deadline: float) -> _Worker:
        """Return an idle worker, or a new one if none exists or all stay busy for _SECONDS_BEFORE_ANOTHER.

        Raises:
            LimitError: _MAX_WORKERS exist, and none became idle before `deadline`.
        """
        start_another_at = time.monotonic() + _SECONDS_BEFORE_ANOTHER
        with self._changed:
            while True:
                while self._idle:
                    worker = self._idle.pop()
                    if worker.running:
                        return worker
                    self._all.discard(worker)
                    worker.end()
                now = time.monotonic()
                if not self._all or (now >= start_another_at and len(self._all) < _MAX_WORKERS):
                    worker = _Worker()
                    self._all.add(worker)
                    return worker
                if now >= deadline:
                    raise LimitError("all renderers of templates were busy until the time limit")
                self._changed.wait(min(deadline, start_another_at if now < start_another_at else deadline) - now)

    def give_back(self, worker: _Worker, usable: bool) -> None:
        with self._changed:
            keeps = usable and bool(self._users) and len(self._idle) < _MAX_IDLE_WORKERS and worker in self._all
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
        source: The template: Jinja, as Hugging Face's transformers renders it.

    Raises:
        LimitError: The template is longer than SOURCE_CHARACTERS.
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
        """Stop the workers if no other renderer is open. May be called twice.

        `render` still works afterwards: it starts a worker for that one call.
        """
        self._release()

    def undeclared(self) -> frozenset[str]:
        """Return the names of the variables that the template reads but doesn't set. The template is compiled once.

        Raises:
            FailureError: The template is not valid Jinja.
            LimitError: The template exceeds a limit.
        """
        with self._compiling:
            if self._undeclared is None:
                try:
                    self._undeclared = frozenset(json.loads(self._ask({}, None, None)))
                except RenderError as error:
                    self._undeclared = error
            if isinstance(self._undeclared, RenderError):
                raise self._undeclared
            return self._undeclared

    def render(self, variables: Mapping[str, Any], seconds: float | None = None, budget: Budget | None = None) -> str:
        """Render the template.

        Args:
            variables: The template's variables by name; their values must be JSON values.
            seconds: The maximum elapsed time in seconds. The renderer's own limits apply if they are shorter.
            budget: A limit of processor time, in addition to the renderer's own.

        Returns:
            The prompt.

        Raises:
            RefusalError: The template called `raise_exception`.
            FailureError: The template is not valid Jinja, or fails on these variables.
            LimitError: The template exceeds a limit.
        """
        return self._ask({"variables": dict(variables)}, seconds, budget)

    def _ask(self, request: Mapping[str, Any], seconds: float | None, budget: Budget | None) -> str:
        begun = time.monotonic()
        body = _dumped(dict(request) | {"source": self._source})
        processor_seconds = SECONDS + SECONDS_FOR_EACH_BYTE * len(body)
        elapsed = ELAPSED_FACTOR * processor_seconds
        deadline = begun + (elapsed if seconds is None else min(seconds, elapsed))
        if budget is not None:
            if budget.left <= 0:
                raise LimitError("it took too long")
            processor_seconds = min(processor_seconds, budget.left)
        memory = MEMORY + MEMORY_FOR_EACH_BYTE * len(body)
        characters = CHARACTERS + CHARACTERS_FOR_EACH_BYTE * len(body)
        with waiting():
            worker = _pool.take(deadline)
            usable = False
            try:
                left = max(deadline - time.monotonic(), 0.001)
                most = memory if _KERNEL_LIMITS_MEMORY else None
                limits = {
                    "seconds": left,
                    "processor_seconds": max(processor_seconds, 0.001),
                    "memory": most,
                    "characters": characters,
                }
                status, used, text = worker.ask(_dumped(limits)[:-1] + b", " + body[1:], left + 0.1, memory)
                usable = status != worker_program.LIMIT
            except _WorkerEndedError:
                raise worker.died() from None
            finally:
                _pool.give_back(worker, usable)
        if budget is not None:
            budget.left -= used
        if status != worker_program.DONE:
            raise _ERRORS[status](text)
        return text


def _dumped(value: Mapping[str, Any]) -> bytes:
    return b"".join(piece.encode("utf-8", "surrogatepass") for piece in json_pieces(value))
