# SPDX-License-Identifier: Apache-2.0
"""Checks which process is at the other end of a UNIX socket. The kernel states it.

No secret is sent as a proof, because a false server would then know the secret.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import Any

_LINUX_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid (unix(7))."""

_MACOS_CREDENTIALS = struct.Struct("=II")
"""The beginning of struct xucred: version, uid (sys/ucred.h); 76 bytes in all."""

_SOL_LOCAL, _LOCAL_PEERCRED, _LOCAL_PEERPID = 0, 1, 2  # sys/un.h of macOS


class WrongProcessError(PermissionError):
    """A process that this user or this program has not started listens on a server's socket."""


def check_user(line: Any) -> None:
    """Check that a process of this user listens at the other end.

    Args:
        line: A connected UNIX socket, or asyncio's wrapper of one.

    Raises:
        WrongProcessError: A process of another user listens.
        OSError: The kernel does not state it.
    """
    _check_user(*_credentials(line))


def check_server(line: Any, server: int) -> None:
    """Check that the server's own process, or one that it started, listens at the other end.

    Args:
        line: A connected UNIX socket, or asyncio's wrapper of one.
        server: The server's process id, which is also the id of its process group.

    Raises:
        WrongProcessError: Another process listens.
        OSError: The process has ended, or the kernel does not state it.
    """
    pid, user = _credentials(line)
    _check_user(pid, user)
    if pid != server and not _belongs_to(pid, server):
        import psutil  # imported only here and below, because few programs need it

        if not psutil.pid_exists(pid):
            raise ConnectionResetError(f"process {pid}, which listened on the server's socket, has ended")
        raise WrongProcessError(f"process {pid} listens on the socket of the server, which is process {server}")


def _check_user(pid: int, user: int) -> None:
    if user != os.geteuid():
        raise WrongProcessError(
            f"process {pid} of user {user} listens on the socket of a server of user {os.geteuid()}"
        )


def _belongs_to(pid: int, server: int) -> bool:
    """Return whether the process is in the server's process group, or a descendant of the server."""
    import psutil

    try:
        if pid > 0 and os.getpgid(pid) == server:
            return True
        return any(parent.pid == server for parent in psutil.Process(pid).parents())
    except (OSError, psutil.Error, ValueError):
        return False


def _credentials(line: Any) -> tuple[int, int]:
    """Return the id of the process that listens and the id of its user, both from when it began to listen."""
    if sys.platform == "linux":
        pid, user, _ = _LINUX_CREDENTIALS.unpack(
            line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _LINUX_CREDENTIALS.size)
        )
        return pid, user
    # pragma: no cover - macOS
    _, user = _MACOS_CREDENTIALS.unpack_from(line.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, 76))
    return line.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID), user
