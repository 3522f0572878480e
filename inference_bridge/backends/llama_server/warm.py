# SPDX-License-Identifier: Apache-2.0
"""Servers that outlive the program that started them (`keep_alive`), to be found by the next.

Each has a directory in one that only its user may enter: $XDG_RUNTIME_DIR/inference-bridge, or
inference-bridge-UID where temporary files go. The directory is named by what makes two servers the same: program,
arguments, files and environment. In it lies the socket of its supervisor, who knows all the rest, and
who ends the server when it was idle for long enough.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...errors import ServerError
from ..warm import peers
from ..warm.directories import runtime_directories, runtime_directory
from .lease import Lease

_PREFIX = "w-"
_KEY_LENGTH = 12
_ROOM = len("/") + len(_PREFIX) + _KEY_LENGTH + len("-xxxxxxxx") + len("/server.sock")
_PROTOCOL = 1
"""What a supervisor and its clients must agree on: another number is another server."""

_ENVIRONMENT = ("CUDA_", "GGML_", "GPU_", "HIP_", "HSA_", "ROCR_", "VK_", "LD_LIBRARY_PATH", "DYLD_")
"""Variables that may change what a server computes, or on which device."""

_ANSWER_TIMEOUT = 5.0
_STOP_TIMEOUT = 15.0


@dataclass(frozen=True, slots=True)
class WarmServer:
    """A server that is kept alive.

    id              names it for `stop`
    backend, model  which backend started it, for which file
    pid             its process
    started         seconds since the epoch
    keep_alive      seconds that it lives on without a user
    users           how many models hold it at the moment
    idle            seconds since the last one let it go; 0 while there is one
    """

    id: str
    backend: str
    model: str
    pid: int
    started: float
    keep_alive: float
    users: int
    idle: float


def servers() -> list[WarmServer]:
    """The servers of this user that are kept alive, the oldest first."""
    found = []
    for directory in _directories():
        lease = _ask(directory, do="list")
        if lease is not None:
            told = lease.status
            about = told["about"]
            found.append(
                WarmServer(
                    id=_key(directory),
                    backend=about["backend"],
                    model=about["model"],
                    pid=told["pid"],
                    started=told["started"],
                    keep_alive=told["keep_alive"],
                    users=told["users"],
                    idle=told["idle"],
                )
            )
            lease.close()
    return sorted(found, key=lambda server: server.started)


def stop(id: str) -> bool:
    """End the server called `id`, and wait until it is gone. False: there is none.

    Whoever is using it sees it crash, and starts another at the next call. Raises ServerError if it
    does not end.
    """
    stopped = False
    for directory in _directories(id):
        lease = _ask(directory, do="stop")
        if lease is not None:
            try:
                if not lease.ended(_STOP_TIMEOUT):
                    raise ServerError(f"the server {id} (process {lease.pid}) does not end: kill it")
            finally:
                lease.close()
            stopped = True
    return stopped


def key_of(
    program: Sequence[str],
    arguments: Sequence[str],
    chat_template: str | None,
    files: Sequence[str],
    environment: Mapping[str, str],
) -> str:
    """What makes two servers the same: a name for it."""
    parts = [
        _PROTOCOL,
        list(program),
        list(arguments),
        chat_template,
        [_identity(path) for path in (program[0], *files)],
        sorted((name, value) for name, value in environment.items() if name.startswith(_ENVIRONMENT)),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_KEY_LENGTH]


def context_length(key: str) -> int:
    """The context of the server called `key`, in tokens for each operation; 0 where there is no such server."""
    for directory in _directories(key):
        lease = _ask(directory, do="list")
        if lease is not None:
            lease.close()
            length: int = lease.about["context_length"]
            return length
    return 0


def acquire(key: str, keep_alive: float, start: Callable[[str], Lease]) -> tuple[Lease, str]:
    """A lease of the server called `key`, which `start` starts in the directory it is given if there is none.

    Returns the lease and the server's directory. The server may still be loading.
    """
    base = runtime_directory(_ROOM)
    with _locked(os.path.join(base, "lock")):
        for directory in _directories(key):
            lease = _ask(directory, do="lease", keep_alive=keep_alive)
            if lease is not None:
                return lease, directory
            if _is_abandoned(directory):
                shutil.rmtree(directory, ignore_errors=True)
        directory = tempfile.mkdtemp(prefix=f"{_PREFIX}{key}-", dir=base)
        try:
            lease = start(directory)
            lease.begun(_ANSWER_TIMEOUT)  # from here on others find it; if it did not start, its lease says so
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return lease, directory


def _ask(directory: str, **message: object) -> Lease | None:
    """Speak to the supervisor in `directory`. None: it is gone, or about to go."""
    line = socket.socket(socket.AF_UNIX)
    try:
        line.settimeout(_ANSWER_TIMEOUT)
        line.connect(os.path.join(directory, "control"))
        peers.check_user(line)
    except OSError:
        line.close()
        return None
    lease = Lease(line)
    lease.send(**message)
    if lease.begun(_ANSWER_TIMEOUT) or (message["do"] == "stop" and lease.pid is not None):
        return lease
    lease.close()
    return None


def _is_abandoned(directory: str) -> bool:
    """Whether its supervisor was killed, or is about to end."""
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.settimeout(_ANSWER_TIMEOUT)
            line.connect(os.path.join(directory, "control"))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            return False
    return False


def _directories(key: str | None = None) -> list[str]:
    """The directories of the servers that are kept alive; with a `key`, of those called that."""
    found = []
    for base in runtime_directories(_ROOM):
        with contextlib.suppress(OSError):
            names = sorted(name for name in os.listdir(base) if name.startswith(_PREFIX))
            found += [os.path.join(base, name) for name in names if key in (None, _key(name))]
    return found


def _key(directory: str) -> str:
    return os.path.basename(directory)[len(_PREFIX) :][:_KEY_LENGTH]


def _identity(path: str) -> tuple[str, int, int]:
    path = shutil.which(path) or path
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return os.path.realpath(path), found.st_size, found.st_mtime_ns
    return path, 0, 0


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold the lock at `path` against other processes and threads."""
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # for a forked child too, which has this descriptor as well
        os.close(descriptor)
