# SPDX-License-Identifier: Apache-2.0
"""A llama-server process that is started at the first use, and again after a crash."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any

import psutil

from ...errors import BridgeError, GenerationError, ModelClosedError, ModelLoadError, ServerCrashedError, ServerError
from ...request import Request
from ..http.transport.connection import CONNECT_TIMEOUT, FIRST_TOKEN_TIMEOUT, Connection
from ..warm import peers
from ..warm.directories import runtime_directory
from . import lease as leases
from .lease import Lease

_log = logging.getLogger(__name__)

START_TIMEOUT = 600.0
"""Seconds in which the model must be loaded, unless `connect_timeout` is set."""

_POLL = 0.05
_ANSWER_TIMEOUT = 2.0
_PROGRESS = 5.0
SOCKET = "server.sock"  # llama-server takes a host that ends in ".sock" for the path of a socket


@dataclass(frozen=True)
class ServerPlan:
    """How to run a server.

    Attributes:
        backend: The name of the backend, for messages.
        program: The executable, and arguments before those of llama-server.
        arguments: llama-server's arguments, without those for its context and its address.
        model: The path of the model, for messages.
        context_length: Maximum number of tokens of an operation.
        slots: Maximum number of operations at once.
        environment: Variables in addition to this process's. None removes a variable.
        chat_template: A Jinja template to use instead of the model's.
        start_timeout: Seconds in which the model must be loaded.
        first_token_timeout: Seconds in which an answer must begin.
    """

    backend: str
    program: tuple[str, ...]
    arguments: tuple[str, ...]
    model: str
    context_length: int
    slots: int
    environment: Mapping[str, str | None] = field(default_factory=dict)
    chat_template: str | None = None
    start_timeout: float = START_TIMEOUT
    first_token_timeout: float = FIRST_TOKEN_TIMEOUT

    def child_environment(self) -> dict[str, str]:
        """Return this process's environment with `environment`, without variables that would configure the server."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_ARG_", "LLAMA_SERVER"))
        }
        kept.pop("LLAMA_API_KEY", None)
        # After a failed assertion ggml would run a debugger that prints the whole stack. The end of the log, which
        # errors quote, would then not contain the assertion.
        kept["GGML_NO_BACKTRACE"] = "1"
        merged = {**kept, **self.environment}
        return {name: value for name, value in merged.items() if value is not None}


class _Running:
    """One server process, and the connection to it."""

    def __init__(self, plan: ServerPlan, lease: Lease, directory: str) -> None:
        self.lease = lease
        self.address = os.path.join(directory, SOCKET)
        self.connection = Connection(
            "http://llama-server",
            uds=self.address,
            check_peer=self.check_peer,
            connect_timeout=CONNECT_TIMEOUT,
            first_token_timeout=plan.first_token_timeout,
            trust_env=False,  # do not use a proxy
        )
        self.ready = False
        self.given_up: str | None = None
        """Why it was ended before it was ready: the error of all operations that wait for it."""
        self._directory = directory
        self._logged = 0

    def check_peer(self, line: Any) -> None:
        """Check that the server itself listens at the other end of `line`. Raises OSError."""
        if self.lease.pid is None:
            raise peers.WrongProcessError("the server is not known yet")
        peers.check_server(line, self.lease.pid)

    def has_ended(self) -> bool:
        """Return whether the server has ended. If so, wait until its supervisor has reported that."""
        lease = self.lease
        return lease.listen() or (lease.pid is not None and not _is_alive(lease.pid) and lease.ended(5))

    def relay_log(self) -> None:
        """Log what the server has written since the last call, if debug messages are logged."""
        if not _log.isEnabledFor(logging.DEBUG):
            return
        with contextlib.suppress(OSError), open(os.path.join(self._directory, "log"), errors="replace") as file:
            file.seek(self._logged)
            for line in file:
                _log.debug("%s", leases.printable(line))
            self._logged = file.tell()

    def close(self) -> None:
        self.relay_log()
        self.connection.close()
        self.lease.close()
        abandoned = self.lease.exit is None and self.lease.error is None
        if abandoned:  # its supervisor was killed, so it could not remove the directory
            if sys.platform != "linux" and self.lease.pid is not None:  # pragma: no cover - not needed on Linux
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.lease.pid, signal.SIGKILL)
            _remove(self._directory)


class ServerProcess:
    """Runs a server from the first use on. Thread-safe."""

    def __init__(self, plan: ServerPlan) -> None:
        self.plan = plan
        self._lock = threading.RLock()  # reentrant: a signal handler may call `close` during `ready`
        self._running: _Running | None = None
        self._closed = False
        self._peak = 0
        self._pid = os.getpid()

    # ------------------------------------------------ for HttpModel

    def connect(self) -> Connection:
        """Return the connection to the server, which is started if it does not run. Raises as `ready`."""
        running = self.ready()
        assert running is not None
        return running.connection

    def explain(self, error: ServerError) -> GenerationError:
        """Return the error of an operation that broke off: ServerCrashedError if the server has ended, else `error`."""
        running = self._running
        if error.status is not None or running is None:
            return error
        lease = running.lease
        # Its sockets close a moment before the process ends.
        if not lease.ended(0.25) and not _is_alive(lease.pid):
            lease.ended(5)
        return _crash(self.plan, lease, "while it generated") if lease.over else error

    def ready(self, request: Request | None = None) -> _Running | None:
        """Wait until the server has loaded its model. Start it if it does not run.

        Args:
            request: The request that waits, with its timeout.

        Returns:
            The server. None: `request` was cancelled.

        Raises:
            ModelLoadError: The server can't be started, can't load the model, or takes too long.
            ServerCrashedError: It crashed.
            GenerationTimeoutError: The timeout of `request` is over.
            ModelClosedError: The model is closed.
        """
        with self._lock:
            if self._closed:
                raise ModelClosedError("the model is closed: load it again")
            running = self._running
            if running is not None and running.has_ended():
                running.close()
                running = None
            if running is None:
                running = self._running = _start(self.plan)
                if self._closed:  # a signal handler in this thread has called `close`
                    self._running = None
                    running.close()
                    raise ModelClosedError("the model is closed: load it again")
        return running if running.ready or self._wait(running, request) else None

    def _wait(self, running: _Running, request: Request | None) -> bool:
        """Wait until `running` has loaded its model. Return False if `request` was cancelled. Raises as `ready`."""
        plan, lease = self.plan, running.lease
        begun = time.monotonic()
        logged_at = 0.0
        while not self._answers(running):
            over = lease.listen(_POLL)
            if self._closed:
                raise ModelClosedError("the model was closed while its server loaded")
            if running.given_up is not None:
                raise ModelLoadError(running.given_up)
            if over:
                raise _failure(plan, lease)
            if request is not None:
                if request.cancelled:
                    return False
                if request.remaining() == 0:
                    raise request.timed_out()
            running.relay_log()
            waited = time.monotonic() - begun
            if waited >= plan.start_timeout:
                raise self._given_up(
                    running,
                    f"{plan.backend} did not load {plan.model} within {plan.start_timeout:g} s: "
                    "allow more with connect_timeout",
                )
            if waited - logged_at >= _PROGRESS:
                logged_at = waited
                _log.info("%s is loading %s (%.0f s)", plan.backend, plan.model, waited)
        if not lease.begun(5):
            raise _failure(plan, lease)
        running.relay_log()
        running.ready = True
        return True

    def _answers(self, running: _Running) -> bool:
        """Return whether the server has loaded its model.

        Raises:
            ModelLoadError: Another process listens on the server's socket.
        """
        try:
            return _status(running) == 200
        except peers.WrongProcessError as error:
            raise self._given_up(running, f"{self.plan.backend} does not use its server: {error}") from error

    def _given_up(self, running: _Running, why: str) -> ModelLoadError:
        """End a server that is not ready, and return the error for every operation that waits for it."""
        running.given_up = why
        with self._lock:
            if self._running is running:
                self._running = None
            running.close()
        return ModelLoadError(why)

    # ------------------------------------------------ state

    @property
    def is_ready(self) -> bool:
        """Whether `ready` would return at once."""
        running = self._running
        return running is not None and running.ready and not running.has_ended()

    @property
    def pid(self) -> int | None:
        """The server's process id. None: it does not run."""
        running = self._running
        return None if running is None or running.lease.listen() else running.lease.pid

    def memory(self) -> tuple[int, int]:
        """Return the server's resident bytes, 0 if it does not run, and the largest number that was measured."""
        pid = self.pid
        try:
            active = int(psutil.Process(pid).memory_info().rss) if pid is not None else 0
        except psutil.Error:
            active = 0
        self._peak = max(self._peak, active)
        return active, self._peak

    def close(self) -> None:
        """Stop the server. Idempotent."""
        if self._pid != os.getpid():
            return  # in a forked child: the server belongs to the parent
        self._closed = True
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running.close()


# ---------------------------------------------------------------- starting


def _start(plan: ServerPlan) -> _Running:
    try:
        base = runtime_directory(len("/p-xxxxxxxx/") + len(SOCKET))
        directory = tempfile.mkdtemp(prefix="p-", dir=base)
        _log.info("starting %s for %s", plan.program[0], plan.model)
        try:
            lease = leases.start(directory, _command(plan, directory), plan.child_environment())
        except BaseException:
            _remove(directory)
            raise
    except OSError as error:
        raise ModelLoadError(f"{plan.backend} can't start a server: {error.strerror or error}") from error
    return _Running(plan, lease, directory)


def _command(plan: ServerPlan, directory: str) -> list[str]:
    command = [*plan.program, "--ctx-size", str(plan.context_length * plan.slots), *plan.arguments]
    if plan.chat_template is not None:
        command += ["--chat-template-file", _write(directory, "template.jinja", plan.chat_template)]
    return [*command, "--host", os.path.join(directory, SOCKET)]


def _write(directory: str, name: str, text: str) -> str:
    path = os.path.join(directory, name)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    return path


def _remove(directory: str) -> None:
    import shutil

    shutil.rmtree(directory, ignore_errors=True)


# ---------------------------------------------------------------- waiting


def _status(running: _Running) -> int | None:
    """Return the status of GET /health: 200 once the model is loaded. None: the server does not answer yet.

    The pooled client is not used, because it would log every attempt.

    Raises:
        WrongProcessError: Another process listens on the server's socket.
    """
    if running.lease.pid is None:
        return None
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(_ANSWER_TIMEOUT)
        connection = HTTPConnection("127.0.0.1")
        connection.sock = line
        try:
            line.connect(running.address)
            running.check_peer(line)
            connection.request("GET", "/health")
            return connection.getresponse().status
        except peers.WrongProcessError:
            raise
        except (OSError, HTTPException):
            return None


def _is_alive(pid: int | None) -> bool:
    try:
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _failure(plan: ServerPlan, lease: Lease) -> BridgeError:
    """Return the error for a server that ended before it had loaded its model."""
    if lease.error is not None:
        return ModelLoadError(f"{plan.backend} can't start its server: {lease.error} ({plan.program[0]})")
    if lease.exit is None or lease.exit < 0:
        return _crash(plan, lease, f"while it loaded {plan.model}")
    return ModelLoadError(
        f"{plan.backend} could not load {plan.model}: its server ended with exit code {lease.exit}{_tail(lease)}"
    )


def _crash(plan: ServerPlan, lease: Lease, when: str) -> ServerCrashedError:
    """Return the error for a server that crashed, with the end of its log."""
    advice = "the next call starts another"
    if lease.exit is None:
        how = "its supervisor was killed, and the server with it"
    elif lease.exit < 0:
        how = f"it was ended by {_signal_name(-lease.exit)}"
        if lease.exit == -signal.SIGKILL:
            how += " (if nothing sent that signal, memory ran out)"
    else:
        how = f"it ended with exit code {lease.exit}"
    return ServerCrashedError(f"the server of {plan.backend} ended {when}: {how}; {advice}{_tail(lease)}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _tail(lease: Lease) -> str:
    lines = [line.rstrip() for line in lease.log.splitlines() if line.strip()][-20:]
    return "\n  ".join(["\nThe last lines of its log:", *lines]) if lines else ""
