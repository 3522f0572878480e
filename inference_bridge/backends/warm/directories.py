# SPDX-License-Identifier: Apache-2.0
"""The private directories that hold the servers' sockets.

Only this user can enter such a directory, so only this user's processes can listen in it. In a directory where every
user may write, another user may have created a directory of the usual name. Then one with a random name is created
beside it, which later programs recognise by its owner.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator

from ...errors import ModelLoadError

SOCKET_PATH_LIMIT = 103
"""Maximum length of a UNIX socket's path in bytes: `sun_path` without its final NUL on macOS, where it is shortest."""

_USUAL_PLACE = "/tmp"  # noqa: S108 - the directory that is created there is private


def runtime_directory(room: int) -> str:
    """Return a directory that only this user may enter. Create it if there is none.

    Args:
        room: Length of the part of a socket's path after the directory's path, in bytes.

    Raises:
        ModelLoadError: Such a directory can't be created anywhere.
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
                # Another program may have created one at the same time. Both programs use the first one.
                return _random_names(parent, name)[0]
    tried = ", ".join(dict.fromkeys(parent for parent, _ in places)) or "no directory"
    raise ModelLoadError(
        f"a managed server needs a private directory with a short path for its socket, and none can be made (tried "
        f"{tried}): set XDG_RUNTIME_DIR or TMPDIR to a directory of yours with a path of at most "
        f"{SOCKET_PATH_LIMIT - room - len('/inference-bridge')} bytes"
    )


def runtime_directories(room: int) -> list[str]:
    """Return all directories in which programs of this user start servers, `runtime_directory(room)` first.

    There are several if two programs have created one at the same time. The list is empty if none can be created.

    Args:
        room: As for `runtime_directory`.
    """
    try:
        base = runtime_directory(room)
    except ModelLoadError:
        return []
    parent = os.path.dirname(base)
    name = next(name for place, name in _places() if place == parent)
    return list(dict.fromkeys([base, *_random_names(parent, name)]))


def _places() -> Iterator[tuple[str, str]]:
    """Yield each possible parent directory, with the name of the directory in it."""
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
    """Create the directory. Return whether it exists now."""
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
    """Return whether `path` is a directory, and not a link, that this user owns and no other user may enter."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077


def _is_trusted(parent: str) -> bool:
    """Return whether this user or the system owns the directory `parent`: its owner can replace its content."""
    try:
        found = os.stat(parent)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid in (os.geteuid(), 0, os.stat("/").st_uid)
