# SPDX-License-Identifier: Apache-2.0
"""The files of the prefix cache on disk: their format, their checks, their list and their limits.

One file holds one prefix: a header, the token ids, and the engine's state. All files are in one directory that only
this user may enter, and each has the mode 0600. The name of a file begins with a hash of everything that the state
depends on: the model's files, the engine's build, and the settings.

Native code reads a state without checking it, and a damaged state may end the process. So both parts of a file have a
keyed checksum (HMAC-SHA256 with a random key of this directory). It detects a file that is cut off, changed or copied
from elsewhere before native code reads it.

A file is written under another name and renamed, so a reader sees the whole file or none. It is not flushed to the
disk first: the checksum detects a file that a power failure cut off. The modification time of a file is the time of its
last use.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import json
import logging
import os
import secrets
import stat
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from ..._cache.directories import user_directory

_log = logging.getLogger(__name__)

Buffer: TypeAlias = "bytes | bytearray | memoryview"

MAGIC = b"IBPREFIX"
SUFFIX = ".prefix"
CHECKSUM_BYTES = 32
START = struct.Struct("<8sIIQQ")
"""Magic, bytes of the header's JSON, number of tokens, tokens that the state takes in memory, bytes of the state."""
STEP = 8 << 20
"""Bytes that are read, written and checked in one call."""

MAX_FILES = 256
"""Maximum number of files. A look-up reads every header, and the states of recurrent models take few bytes."""

_TEMPORARY = ".writing-"
_KEY = "key"
_MAX_HEADER = 1 << 16
_MAX_TOKENS = 1 << 24

_SAMPLES = 256
_SAMPLE_BYTES = 256
_HEAD_BYTES = 1 << 20


def directory() -> str:
    """Return the directory of the prefix cache. It need not exist."""
    return os.path.join(user_directory("cache"), "prefixes")


def fingerprint(path: str, head: int = _HEAD_BYTES) -> str:
    """Return an identity of a model's file.

    It is a hash of the size, the time of the last change, the first `head` bytes, and 256 samples of 256 bytes spread
    evenly over the file. Hashing all of it would take longer than the prompt. Samples tell two trainings of one
    architecture apart, since training changes nearly every weight, also where a package manager gave both files the
    same time; the time tells apart an edit that the samples miss. A copy with another time is evaluated again, once.

    Args:
        path: The file.
        head: Bytes at its beginning that are hashed whole.

    Raises:
        OSError: The file can't be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        digest.update(f"{found.st_size} {found.st_mtime_ns} ".encode())
        digest.update(file.read(head))
        last = max(found.st_size - _SAMPLE_BYTES, 0)
        for number in range(1, _SAMPLES + 1):
            digest.update(os.pread(file.fileno(), _SAMPLE_BYTES, last * number // _SAMPLES))
    return digest.hexdigest()


class Header(NamedTuple):
    """The first part of a file, whose checksum is correct.

    Attributes:
        tokens: The token ids of the prefix.
        room: Tokens that the state takes in memory before it is cut.
        size: Bytes of the state.
        about: The identity of the state, and the model's path.
        mac: The checksum.
        start: Where the state begins in the file, in bytes.
    """

    tokens: list[int]
    room: int
    size: int
    about: Mapping[str, Any]
    mac: bytes
    start: int


# ---------------------------------------------------------------- all models


class Entry(NamedTuple):
    """A file of the prefix cache: its model, tokens, bytes, and when it was last used (seconds since the epoch)."""

    model: str
    tokens: int
    size: int
    used: float


def entries(place: str | None = None) -> list[Entry]:
    """Return the prefixes on disk. Damaged files are left out."""
    place = place or directory()
    there = scan(place)
    try:
        key = key_of(place, make=False) if there else b""
    except (OSError, ValueError):
        return []
    found = []
    for entry in there:
        header = None
        with contextlib.suppress(OSError):
            header = read_header(entry.path, key)
        if header is not None:
            size, used, _ = state_of(entry)
            found.append(Entry(str(header.about.get("model")), len(header.tokens), size, used / 1e9))
    return found


def clear(place: str | None = None) -> tuple[int, int]:
    """Remove every file of the prefix cache, and its key.

    Returns:
        The number of prefixes that were removed, and their bytes.

    Raises:
        OSError: A file can't be removed.
    """
    place = place or directory()
    count = size = 0
    for entry in scan(place):
        size += entry.stat(follow_symlinks=False).st_size
        os.unlink(entry.path)
        count += 1
    for path in _orphans(place):
        os.unlink(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(place, _KEY))
    return count, size


def prune(place: str, limit: int, keep: str = "") -> None:
    """Remove the least recently used files, until at most MAX_FILES files of `limit` bytes in total are left.

    Temporary files of processes that were killed while they wrote are removed too.

    Args:
        place: The directory.
        limit: Maximum size of all files, in bytes.
        keep: The path of a file that is not removed.
    """
    for path in _orphans(place):
        remove(path)
    files = sorted((state_of(entry)[1], state_of(entry)[0], entry.path) for entry in scan(place))
    total = sum(size for _, size, _ in files)
    for older, (_, size, path) in enumerate(files):
        if total <= limit and len(files) - older <= MAX_FILES:
            return
        if path != keep:
            remove(path)
            total -= size


def _orphans(place: str) -> Iterable[str]:
    """Yield the temporary files that no process holds."""
    for entry in scan(place, _TEMPORARY):
        import fcntl

        try:
            descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            yield entry.path
        finally:
            os.close(descriptor)


# ---------------------------------------------------------------- files


def scan(place: str, prefix: str = "") -> list[os.DirEntry[str]]:
    """Return the files of prefixes, or those whose names begin with `prefix`."""
    try:
        with os.scandir(place) as found:
            return [one for one in found if (one.name.startswith(prefix) if prefix else one.name.endswith(SUFFIX))]
    except OSError:
        return []


def state_of(entry: os.DirEntry[str]) -> tuple[int, int, int]:
    """Return size, time of the last use in nanoseconds, and inode number. Zeros: the file does not exist any more."""
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError:
        return 0, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ino


def remove(path: str, why: str = "") -> None:
    """Remove a file if it exists. If `why` is given, log it."""
    if why:
        _log.warning("%s %s: it is removed", path, why)
    with contextlib.suppress(OSError):
        os.unlink(path)


def make_directory(place: str) -> None:
    """Create the directory, for this user only. Raises OSError, also if another user owns it."""
    os.makedirs(place, mode=0o700, exist_ok=True)
    found = os.lstat(place)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{place} is not a directory of this user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        os.chmod(place, 0o700)


def key_of(place: str, *, make: bool = True) -> bytes:
    """Return the key of the directory, which is created at the first use.

    Args:
        place: The directory.
        make: Whether to create a key if there is none.

    Raises:
        OSError: The key is missing, or it can't be read or created.
        ValueError: The key is damaged, and `make` is false.
    """
    if make:
        make_directory(place)
    path = os.path.join(place, _KEY)
    for _ in range(3):
        try:
            with opened(path) as file:
                key: bytes = file.read(CHECKSUM_BYTES + 1)
            if len(key) == CHECKSUM_BYTES:
                return key
            raise ValueError(f"{path} is damaged")
        except FileNotFoundError:
            if not make:
                raise
        except ValueError:
            if not make:
                raise
            remove(path, "is not a key")
        with temporary_file(place) as (file, temporary):
            file.write(secrets.token_bytes(CHECKSUM_BYTES))
            file.flush()
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(temporary, path)
    raise OSError(f"{path} can't be made")


@contextlib.contextmanager
def opened(path: str) -> Iterator[Any]:
    """Open a file of this user alone for reading. Raises OSError, and ValueError for any other file."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise ValueError(f"{path} is not a file of this user alone")
        yield file


@contextlib.contextmanager
def temporary_file(place: str) -> Iterator[tuple[Any, str]]:
    """Create a file for this user only, and lock it while it is written. It is removed unless it was renamed."""
    import fcntl
    import tempfile

    descriptor, path = tempfile.mkstemp(prefix=_TEMPORARY, dir=place)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield _Whole(file), path
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


class _Whole:
    """A file without a buffer, whose `write` always writes all bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: Buffer) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def flush(self) -> None:
        self._file.flush()


def read_header(path: str, key: bytes) -> Header | None:
    """Read the first part of a file.

    Args:
        path: The file.
        key: The key of the directory.

    Returns:
        The header. None: it is damaged or from elsewhere, or the file has another size than it states.

    Raises:
        OSError: The file can't be read.
    """
    try:
        with opened(path) as file:
            begin = file.read(START.size)
            magic, length, count, room, size = START.unpack(begin)
            if magic != MAGIC or length > _MAX_HEADER or not 0 < count <= _MAX_TOKENS or room < count:
                return None
            start = START.size + length + 4 * count + CHECKSUM_BYTES
            if os.fstat(file.fileno()).st_size != start + size + CHECKSUM_BYTES:
                return None
            rest = file.read(length + 4 * count)
            mac = file.read(CHECKSUM_BYTES)
        if not hmac.compare_digest(mac, checksum(key, begin, rest)):
            return None
        return Header(array("i", rest[length:]).tolist(), room, size, json.loads(rest[:length]), mac, start)
    except (ValueError, struct.error):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:  # a symbolic link
            return None
        raise


def checksum(key: bytes, *parts: Buffer) -> bytes:
    """Return the HMAC-SHA256 of the concatenated parts."""
    digest = hmac.new(key, digestmod="sha256")
    for part in parts:
        digest.update(part)
    return digest.digest()
