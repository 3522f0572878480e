# SPDX-License-Identifier: Apache-2.0
"""The private directories that hold the servers' sockets.

Only this user can enter one, so only this user's processes can listen in it. Another user may take the usual
name first, in a directory where everybody may write. Then a directory with a random name is made beside it, and
later programs find that one by its owner.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator

from ...errors import ModelLoadError

SOCKET_PATH_LIMIT = 103
"""Bytes that the path of a UNIX socket may have: `sun_path` without its final NUL, on macOS, where it is shortest."""

_USUAL_PLACE = "/tmp"  # noqa: S108 - what is used there is private


def runtime_directory(room: int) -> str:
    """Return a directory of this user alone, and make it if there is none.

    Args:
        room: bytes that the path of a socket has after the directory's own path.

    Raises:
        ModelLoadError: there is no place where such a directory can be made.
    """
    places = list(_places())
    for parent, name in places:
        path = os.path.join(parent, name)
        if _has_room(path, room) and _made(path) and _is_private(path):
            return path
    random_name = len("-xxxxxxxx")
    for parent, name in places:
        for path in _random_names(parent, name):
            if _has_room(path, room):
                return path
        if _has_room(os.path.join(parent, name), room + random_name):
            with contextlib.suppress(OSError):
                tempfile.mkdtemp(prefix=f"{name}-", dir=parent)
                # Another program may have made one at the same time: both take the same.
                return _random_names(parent, name)[0]
    tried = ", ".join(dict.fromkeys(parent for parent, _ in places)) or "no directory"
    raise ModelLoadError(
        f"a managed server needs a private directory with a short path for its socket, and none can be made (tried "
        f"{tried}): set XDG_RUNTIME_DIR or TMPDIR to a directory of yours with a path of at most "
        f"{SOCKET_PATH_LIMIT - room - len('/inference-bridge')} bytes"
    )


def runtime_directories(room: int) -> list[str]:
    """Return `runtime_directory(room)` and its private siblings: where programs of this user start servers.

    There may be several after two programs made one at the same time. The list is empty where none can be made.
    """
    try:
        base = runtime_directory(room)
    except ModelLoadError:
        return []
    parent = os.path.dirname(base)
    name = next(name for place, name in _places() if place == parent)
    return list(dict.fromkeys([base, *_random_names(parent, name)]))


def _places() -> Iterator[tuple[str, str]]:
    """Yield each directory in which to look, with the name to look for."""
    user = f"inference-bridge-{os.geteuid()}"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    given = [(runtime, "inference-bridge")] if runtime else []
    seen = set()
    for parent, name in [*given, (tempfile.gettempdir(), user), (_USUAL_PLACE, user)]:
        parent = os.path.abspath(parent)
        if parent not in seen and _is_trusted(parent):
            seen.add(parent)
            yield parent, name


def _has_room(path: str, room: int) -> bool:
    return len(os.fsencode(path)) + room <= SOCKET_PATH_LIMIT


def _made(path: str) -> bool:
    """Make the directory. True if it is there now."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


def _random_names(parent: str, name: str) -> list[str]:
    """Return the directories of this user that were made because another user had taken `name`."""
    try:
        names = sorted(entry for entry in os.listdir(parent) if entry.startswith(f"{name}-"))
    except OSError:
        return []
    paths = [os.path.join(parent, entry) for entry in names]
    return [path for path in paths if _is_private(path)]


def _is_private(path: str) -> bool:
    """Whether `path` is a directory, not a link to one, that this user owns and nobody else may enter."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077


def _is_trusted(parent: str) -> bool:
    """Whether `parent` is a directory of this user or the system: its owner can replace what is in it."""
    try:
        found = os.stat(parent)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid in (os.geteuid(), 0, os.stat("/").st_uid)
