# SPDX-License-Identifier: Apache-2.0
"""Reads a file whose path a caller gave: only a regular file, only up to a size limit, and without blocking."""

from __future__ import annotations

import os
import stat

MAX_ATTACHMENT_BYTES = 100 << 20
"""The largest file that an attachment may name: 100 MiB."""

_STEP = 1 << 20


def read_file(path: str, limit: int = MAX_ATTACHMENT_BYTES) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Args:
        path: The path of the file; it may begin with ~.
        limit: The maximum size in bytes. The bytes that are read are counted too: files in /proc state a size of 0.

    Returns:
        The whole content.

    Raises:
        ValueError: The file can't be read, is a directory, device, pipe or socket, or is larger than `limit`.
    """
    path = os.path.expanduser(path)
    try:
        descriptor = _open(path)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"the attachment {path!r} is not a regular file")
            if found.st_size > limit:
                raise _too_large(path, limit)
            pieces, length = [], 0
            while piece := os.read(descriptor, _STEP):
                pieces.append(piece)
                length += len(piece)
                if length > limit:
                    raise _too_large(path, limit)
            return b"".join(pieces)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ValueError(f"the attachment {path!r} can't be read: {error.strerror or error}") from None


def _open(path: str) -> int:
    # Check the type before opening, because opening a device can have side effects. `read_file` checks it again
    # afterwards, because the path may refer to another file by then. O_NONBLOCK: opening a pipe would wait for its
    # writer.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"the attachment {path!r} is not a regular file")
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)


def _too_large(path: str, limit: int) -> ValueError:
    return ValueError(f"the attachment {path!r} is larger than {limit >> 20} MiB")
