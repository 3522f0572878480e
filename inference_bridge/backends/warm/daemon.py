# SPDX-License-Identifier: Apache-2.0
"""Finds the process that keeps this user's models loaded, or starts it.

The process has its own directory inside one that only this user may enter (see `directories`). The directory's name
contains a key: the version of this package, the Python interpreter, and the environment variables that select devices
and programs. Programs with the same key use the same process. The directory holds a socket and a log. The program that
starts the process opens the socket and passes it on. So other programs can connect before the process is ready, and
connections are refused as soon as it has ended, however it ended. A killed process leaves its directory; the next
program removes it.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from ... import __version__
from ...errors import ServerError, UnsupportedError
from ..http import bridge_format
from . import peers, why_not
from .directories import runtime_directories, runtime_directory

PREFIX = "d-"
_KEY_LENGTH = 12
SOCKET = "socket"
LOG = "log"
LOCK = "lock"
ROOM = len("/") + len(PREFIX) + _KEY_LENGTH + len("-xxxxxxxx") + len("/") + len(SOCKET)

_ENVIRONMENT = (
    *("INFERENCE_BRIDGE_CONFIG", "LLAMA_", "ROCM_", "MLX_", "GGML_", "OMP_"),
    *("CUDA_", "GPU_", "HIP_", "HSA_", "ROCR_", "VK_", "LD_LIBRARY_PATH", "DYLD_"),
)
"""Variables that may change what a model computes, with which program or on which device."""

_CONNECT_TIMEOUT = 5.0
_LOG_TAIL = 4096
_BACKLOG = 128


def check_possible(backend: str) -> None:
    """Check that models can be kept loaded here.

    Raises:
        UnsupportedError: The system has no UNIX sockets, or a package is missing.
    """
    if why := why_not():
        raise UnsupportedError("keep_alive", backend, why)


def key() -> str:
    """Return the key of the process that this program can use."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    found = os.stat(package)
    environment = sorted((name, value) for name, value in os.environ.items() if name.startswith(_ENVIRONMENT))
    parts = [__version__, bridge_format.PROTOCOL, sys.executable, package, found.st_ino, environment]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_KEY_LENGTH]


def ensure() -> str:
    """Return the path of the process's socket. Start the process if it does not run.

    Raises:
        ServerError: It can't be started.
        ModelLoadError: There is no place for its directory.
    """
    _reap()
    own = key()
    found = _running(own)
    if found is not None:
        return found
    base = runtime_directory(ROOM)
    with locked(base):
        found = _running(own)
        if found is not None:
            return found
        clean(base)
        return _start(base, own)


def sockets() -> list[str]:
    """Return the sockets of this user's processes that keep models, and remove what killed ones have left."""
    for base in runtime_directories(ROOM):
        with locked(base):
            clean(base)
    return [path for directory in _directories() if is_alive(path := os.path.join(directory, SOCKET))]


def is_alive(path: str) -> bool:
    """Return whether a process of this user listens on the socket at `path`."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(_CONNECT_TIMEOUT)
        try:
            line.connect(path)
            peers.check_user(line)
        except (ConnectionRefusedError, FileNotFoundError, peers.WrongProcessError):
            return False
        except OSError:  # it is busy: its queue of connections is full
            return True
    return True


def log_of(path: str) -> str:
    """Return the end of the log of the process whose socket was at `path`; "" where there is none."""
    with contextlib.suppress(OSError), open(os.path.join(os.path.dirname(path), LOG), "rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - _LOG_TAIL, 0))
        return file.read().decode("utf-8", "replace").strip()
    return ""


@contextlib.contextmanager
def locked(base: str) -> Iterator[None]:
    """Hold the lock of the directory `base` against other processes and threads."""
    import fcntl

    descriptor = os.open(os.path.join(base, LOCK), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def clean(base: str) -> None:
    """Remove the directories of killed processes. The lock must be held, so that no process is being started."""
    for directory in _directories():
        if os.path.dirname(directory) == base and _is_abandoned(os.path.join(directory, SOCKET)):
            shutil.rmtree(directory, ignore_errors=True)


def _is_abandoned(path: str) -> bool:
    """Return whether no process listens on the socket at `path`."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(_CONNECT_TIMEOUT)
        try:
            line.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            return False
    return False


def _running(own: str) -> str | None:
    for directory in _directories():
        if os.path.basename(directory).startswith(f"{PREFIX}{own}-"):
            path = os.path.join(directory, SOCKET)
            if is_alive(path):
                return path
    return None


def _directories() -> list[str]:
    found = []
    for base in runtime_directories(ROOM):
        with contextlib.suppress(OSError):
            found += [os.path.join(base, name) for name in sorted(os.listdir(base)) if name.startswith(PREFIX)]
    return found


def _start(base: str, own: str) -> str:
    directory = tempfile.mkdtemp(prefix=f"{PREFIX}{own}-", dir=base)
    path = os.path.join(directory, SOCKET)
    log = os.open(os.path.join(directory, LOG), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        listener.listen(_BACKLOG)
        # -P: nothing is imported from the current directory.
        command = [sys.executable, "-P", "-m", "inference_bridge.serve.daemon", directory, str(listener.fileno())]
        process = subprocess.Popen(
            command,
            pass_fds=(listener.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that Ctrl-C in the terminal does not end it
            cwd="/",
            env=_environment(),
        )
    except OSError as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise ServerError(f"the process that keeps models loaded can't be started: {error}") from error
    finally:
        listener.close()
        os.close(log)
    _started.append(process)
    return path


_started: list[subprocess.Popen[bytes]] = []
"""Processes that this program has started, and that may outlive it."""


def _reap() -> None:
    """Reap child processes that have ended."""
    _started[:] = [process for process in _started if process.poll() is None]


@atexit.register
def _leave() -> None:
    for process in _started:
        process.returncode = 0  # otherwise Popen would warn that its process still runs


def _environment() -> dict[str, str]:
    """Return this program's environment with its import path, but without its log level."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry)
    kept = {name: value for name, value in os.environ.items() if name != "INFERENCE_BRIDGE_LOG"}
    return kept | {"PYTHONPATH": path}


def wait_until_gone(pid: int, seconds: float) -> bool:
    """Wait until a process has ended. Return False if it has not ended within `seconds`."""
    end = time.monotonic() + seconds
    while _runs(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _runs(pid: int) -> bool:
    _reap()  # otherwise an ended child process still has its process id
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
