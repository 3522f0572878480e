# SPDX-License-Identifier: Apache-2.0
"""Check which process is at the other end of a UNIX socket, as the kernel knows it.

Nothing is sent to prove anything: a server that receives a secret as a proof has the secret.
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


class StrangerError(PermissionError):
    """Another user's process, or one that was not started here, listens on a server's socket."""


def check_user(line: Any) -> None:
    """Check that a process of this user listens at the other end.

    Args:
        line: a connected UNIX socket, or asyncio's view of one.

    Raises:
        StrangerError: another user's process does.
        OSError: the kernel can't tell.
    """
    _check_user(*_credentials(line))


def check_server(line: Any, server: int) -> None:
    """Check that the server's own process, or one that it started, listens at the other end.

    Args:
        line: a connected UNIX socket, or asyncio's view of one.
        server: the server's process id, which leads its process group.

    Raises:
        StrangerError: another process does.
        OSError: the process has ended, or the kernel can't tell.
    """
    pid, user = _credentials(line)
    _check_user(pid, user)
    if pid != server and not _belongs_to(pid, server):
        import psutil  # here, as below: few programs get this far

        if not psutil.pid_exists(pid):
            raise ConnectionResetError(f"process {pid}, which listened on the server's socket, has ended")
        raise StrangerError(f"process {pid} listens on the socket of the server, which is process {server}")


def _check_user(pid: int, user: int) -> None:
    if user != os.geteuid():
        raise StrangerError(f"process {pid} of user {user} listens on the socket of a server of user {os.geteuid()}")


def _belongs_to(pid: int, server: int) -> bool:
    """Whether the process is in the server's process group, or descends from the server."""
    import psutil

    try:
        if pid > 0 and os.getpgid(pid) == server:
            return True
        return any(parent.pid == server for parent in psutil.Process(pid).parents())
    except (OSError, psutil.Error, ValueError):
        return False


def _credentials(line: Any) -> tuple[int, int]:
    """The process that listens, and its user, both as they were when it began to listen."""
    if sys.platform == "linux":
        pid, user, _ = _LINUX_CREDENTIALS.unpack(
            line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _LINUX_CREDENTIALS.size)
        )
        return pid, user
    # pragma: no cover - macOS
    _, user = _MACOS_CREDENTIALS.unpack_from(line.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, 76))
    return line.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID), user
