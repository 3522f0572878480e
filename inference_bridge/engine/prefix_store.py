# SPDX-License-Identifier: Apache-2.0
"""The prefix cache on disk: what an engine computed for a sequence of tokens, for later processes.

One file holds one prefix: a header, the token ids, and the engine's state behind them. All files lie in one directory
that only this user may enter, and each has the mode 0600. The name of a file begins with the identity of what computed
it (the model's files, the engine's build, the settings that change a state), so a look-up reads the headers of its own
files alone.

Native code reads a state without checking it, and may end the process where it is damaged. So both parts of a file have
a keyed checksum (HMAC-SHA256 with a random key of this directory): a file that is cut off, changed or from elsewhere is
found before native code sees it, and removed.

A file is written under another name and renamed, so a reader sees all of it or nothing. It is not flushed to the disk
first: what a power failure leaves of it has the wrong checksum. The time of a file's last change is when it was last
used. Nothing here raises: where a prefix can't be read or written, the engine evaluates it again.
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
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from .._directories import user_directory
from .hardware import available_memory
from .prefix import common_length

_log = logging.getLogger(__name__)

Buffer: TypeAlias = "bytes | bytearray | memoryview"

MIN_TOKENS = 512
"""Tokens that a prefix must spare, to be read, or add to what is on disk, to be written."""

_MAGIC = b"IBPREFIX"
_FORMAT = 1
_SUFFIX = ".prefix"
_TEMPORARY = ".writing-"
_KEY = "key"
_MAC_BYTES = 32
_MAX_HEADER = 1 << 16
_MAX_TOKENS = 1 << 24
_START = struct.Struct("<8sIIQQ")
"""Magic, bytes of the header, tokens, positions that the state takes, bytes of the state."""
_STEP = 8 << 20

_SAMPLES = 256
_SAMPLE_BYTES = 256
_HEAD_BYTES = 1 << 20


def directory() -> str:
    """Return the directory of the prefix cache. It need not exist."""
    return os.path.join(user_directory("cache"), "prefixes")


def fingerprint(path: str, head: int = _HEAD_BYTES) -> str:
    """Return what tells a model's file from others.

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


class _Header(NamedTuple):
    """The first part of a file, whose checksum was right."""

    tokens: list[int]
    room: int
    size: int
    about: Mapping[str, Any]
    mac: bytes
    start: int
    """Where the state begins, in bytes."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A prefix on disk that a prompt begins with.

    count    tokens that it has in common with the prompt
    tokens   all of its tokens
    room     tokens that the state takes in memory before it is cut
    """

    path: str
    count: int
    tokens: list[int]
    room: int


class PrefixStore:
    """The prefixes of one model with one set of settings.

    Args:
        identity: Returns what the states depend on, as JSON has it. Called at the first use, since it reads files.
        limit: Bytes that the files of all models may take.
        model: What `entries` calls the model.
        whole: Whether a state can't be cut: it is used for all of its tokens or not at all.
        wake: Called from another thread when a file was written.
        place: The directory, in place of the usual one.
    """

    def __init__(
        self,
        identity: Callable[[], Mapping[str, Any]],
        limit: int,
        *,
        model: str,
        whole: bool,
        wake: Callable[[], None] = lambda: None,
        place: str | None = None,
    ) -> None:
        self.whole = whole
        self.limit = limit
        self._model = model
        self._identity = identity
        self._wake = wake
        self._place = place or directory()
        self._name: str | None = None
        self._key = b""
        self._known: dict[str, tuple[tuple[int, int, int], _Header]] = {}
        self._writing: threading.Thread | None = None

    def _open(self) -> bool:
        """Whether the store can be used. The directory, the key and the identity are made the first time."""
        if self._name is not None:
            return bool(self._name)
        self._name = ""
        try:
            self._key = _key_of(self._place)
            about = json.dumps([_FORMAT, dict(self._identity())], sort_keys=True, default=str)
        except (OSError, ValueError) as error:
            _log.info("there is no prefix cache on disk: %s", error)
            return False
        self._name = hashlib.sha256(about.encode()).hexdigest()[:32]
        return True

    # ------------------------------------------------ reading

    def find(self, tokens: list[int], beyond: int = 0) -> Stored | None:
        """Return the prefix that spares most of the `tokens`, at least MIN_TOKENS more than `beyond`; None: none does.

        Args:
            tokens: The beginning of a prompt that need not be evaluated.
            beyond: Tokens of it that are known without the disk.
        """
        if len(tokens) - beyond < MIN_TOKENS or not self._open():
            return None
        best: Stored | None = None
        for path, header in self._headers():
            count = common_length(header.tokens, tokens)
            if count - beyond < MIN_TOKENS or (self.whole and count < len(header.tokens)):
                continue
            if best is None or (count, -header.room) > (best.count, -best.room):
                best = Stored(path, count, header.tokens, header.room)
        return best

    def _headers(self) -> Iterator[tuple[str, _Header]]:
        """Yield the files of this identity. One that is damaged is removed."""
        found = {}
        for entry in _scan(self._place):
            if not entry.name.startswith(f"{self._name}-"):
                continue
            known = self._known.get(entry.path)
            state = _state_of(entry)
            if known is None or known[0] != state:
                try:
                    header = _header(entry.path, self._key)
                except OSError:  # removed meanwhile, or not readable now
                    continue
                if header is None or header.about.get("identity") != self._name:
                    _remove(entry.path, "is damaged, or not of this program")
                    continue
                known = (state, header)
            found[entry.path] = known
        self._known = found
        for path, (_, header) in found.items():
            yield path, header

    def load(self, stored: Stored) -> bytearray | None:
        """Return the state of a prefix that `find` returned. None: it is gone, damaged (and removed), or too large."""
        known = self._known.get(stored.path)
        if known is None:
            return None
        _, header = known
        if 2 * header.size > available_memory():
            return None
        begun = time.monotonic()
        try:
            with _opened(stored.path) as file:
                file.seek(header.start)
                state, digest = bytearray(header.size), hmac.new(self._key, header.mac, "sha256")
                view, done = memoryview(state), 0
                while read := file.readinto(view[done : done + _STEP]):
                    digest.update(view[done : done + read])
                    done += read
                mac = file.read(_MAC_BYTES + 1)
            if done < header.size or not hmac.compare_digest(mac, digest.digest()):
                _remove(stored.path, "is damaged")
                return None
            with contextlib.suppress(OSError):
                os.utime(stored.path)
        except (OSError, ValueError, MemoryError) as error:
            _log.info("%s can't be read: %s", stored.path, error)
            return None
        _log.debug("read %d bytes for %d tokens in %.3f s", len(state), stored.count, time.monotonic() - begun)
        return state

    # ------------------------------------------------ writing

    @property
    def busy(self) -> bool:
        """Whether a file is being written; `wake` is called when it is."""
        return self._writing is not None and self._writing.is_alive()

    def wants(self, tokens: list[int], size: int) -> bool:
        """Whether the tokens are worth a file.

        Args:
            tokens: Those that a state is for.
            size: Bytes of the state. Twice as many must be free, since a copy of it is made.
        """
        if len(tokens) < MIN_TOKENS or size > self.limit or 2 * size > available_memory() or not self._open():
            return False
        found = self.find(tokens)
        return len(tokens) - (found.count if found else 0) >= MIN_TOKENS

    def put(self, tokens: list[int], state: Buffer, *, room: int | None = None, wait: bool = False) -> None:
        """Write a prefix, in another thread, which calls `wake` at its end.

        Args:
            tokens: What the state is for.
            state: The state as bytes, which nobody changes any more.
            room: Tokens that the state takes in memory, where it holds more than `tokens`.
            wait: Write in this thread: no other can be started while the interpreter ends.
        """
        if self.busy and not wait:
            raise RuntimeError("a prefix is being written")
        self.join()
        if wait:
            self._write(tokens, memoryview(state), room or len(tokens))
            return

        def write() -> None:
            try:
                self._write(tokens, memoryview(state), room or len(tokens))
            finally:
                self._wake()

        self._writing = threading.Thread(target=write, name="inference-bridge-prefixes", daemon=True)
        self._writing.start()

    def join(self) -> None:
        """Wait for the file that is being written."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def _write(self, tokens: list[int], state: memoryview, room: int) -> None:
        begun = time.monotonic()
        state = state.cast("B")
        about = {"identity": self._name, "model": self._model}
        text = json.dumps(about).encode("utf-8", "surrogatepass")
        start = _START.pack(_MAGIC, len(text), len(tokens), room, len(state))
        ids = array("i", tokens).tobytes()
        head = b"".join((start, text, ids))
        mac = _mac(self._key, head)
        size = len(head) + 2 * _MAC_BYTES + len(state)
        name = f"{self._name}-{hashlib.sha256(ids).hexdigest()[:32]}{_SUFFIX}"
        path = os.path.join(self._place, name)
        try:
            _make_directory(self._place)
            prune(self._place, self.limit - size)
            with _temporary(self._place) as (file, temporary):
                digest = hmac.new(self._key, mac, "sha256")
                file.write(head + mac)
                for place in range(0, len(state), _STEP):
                    piece = state[place : place + _STEP]
                    digest.update(piece)
                    file.write(piece)
                file.write(digest.digest())
                file.flush()
                os.replace(temporary, path)
            if not self.whole:
                self._remove_beginnings(tokens, path)
            prune(self._place, self.limit, keep=path)
        except (OSError, ValueError, MemoryError) as error:
            _log.info("a prefix of %d tokens is not kept: %s", len(tokens), error)
            return
        _log.debug("wrote %d bytes for %d tokens in %.3f s", size, len(tokens), time.monotonic() - begun)

    def _remove_beginnings(self, tokens: list[int], path: str) -> None:
        """Remove the files that a longer one replaces."""
        for other, header in list(self._headers()):
            if other != path and header.tokens == tokens[: len(header.tokens)]:
                _remove(other)

    def close(self) -> None:
        self.join()
        self._known.clear()


# ---------------------------------------------------------------- all models


class Entry(NamedTuple):
    """A file of the prefix cache: its model, tokens, bytes, and when it was last used (seconds since the epoch)."""

    model: str
    tokens: int
    size: int
    used: float


def entries(place: str | None = None) -> list[Entry]:
    """Return what is in the prefix cache. Damaged files are left out."""
    place = place or directory()
    try:
        key = _key_of(place, make=False)
    except (OSError, ValueError):
        return []
    found = []
    for entry in _scan(place):
        header = None
        with contextlib.suppress(OSError):
            header = _header(entry.path, key)
        if header is not None:
            size, used, _ = _state_of(entry)
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
    for entry in _scan(place):
        size += entry.stat(follow_symlinks=False).st_size
        os.unlink(entry.path)
        count += 1
    for path in _orphans(place):
        os.unlink(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(place, _KEY))
    return count, size


def prune(place: str, limit: int, keep: str = "") -> None:
    """Remove the files that were not used for longest, until the others take at most `limit` bytes.

    What a process left that was killed while it wrote is removed too.
    """
    for path in _orphans(place):
        _remove(path)
    files = sorted((_state_of(entry)[1], _state_of(entry)[0], entry.path) for entry in _scan(place))
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total <= limit:
            return
        if path != keep:
            _remove(path)
            total -= size


def _orphans(place: str) -> Iterable[str]:
    """Yield the temporary files that no process holds."""
    import fcntl

    for entry in _scan(place, _TEMPORARY):
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


def _scan(place: str, prefix: str = "") -> list[os.DirEntry[str]]:
    """Return the files of prefixes, or those whose names begin with `prefix`."""
    try:
        with os.scandir(place) as found:
            return [one for one in found if (one.name.startswith(prefix) if prefix else one.name.endswith(_SUFFIX))]
    except OSError:
        return []


def _state_of(entry: os.DirEntry[str]) -> tuple[int, int, int]:
    """Return size, time of the last use in nanoseconds, and number; zeros for a file that is gone."""
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError:
        return 0, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ino


def _remove(path: str, why: str = "") -> None:
    if why:
        _log.warning("%s %s: it is removed", path, why)
    with contextlib.suppress(OSError):
        os.unlink(path)


def _make_directory(place: str) -> None:
    """Make the directory, for this user alone. Raises OSError, also where another user owns it."""
    os.makedirs(place, mode=0o700, exist_ok=True)
    found = os.lstat(place)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{place} is not a directory of this user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        os.chmod(place, 0o700)


def _key_of(place: str, *, make: bool = True) -> bytes:
    """Return the key of the directory, which is made the first time. Raises OSError."""
    if make:
        _make_directory(place)
    path = os.path.join(place, _KEY)
    for _ in range(3):
        try:
            with _opened(path) as file:
                key: bytes = file.read(_MAC_BYTES + 1)
            if len(key) == _MAC_BYTES:
                return key
            raise ValueError(f"{path} is damaged")
        except FileNotFoundError:
            if not make:
                raise
        except ValueError:
            if not make:
                raise
            _remove(path, "is not a key")
        with _temporary(place) as (file, temporary):
            file.write(secrets.token_bytes(_MAC_BYTES))
            file.flush()
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(temporary, path)
    raise OSError(f"{path} can't be made")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Open a file of this user alone for reading. Raises OSError, and ValueError for any other file."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise ValueError(f"{path} is not a file of this user alone")
        yield file


@contextlib.contextmanager
def _temporary(place: str) -> Iterator[tuple[Any, str]]:
    """Make a file for this user alone, locked while it is written. It is removed, unless it was renamed."""
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
    """A file without a buffer, whose `write` writes all of its bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: Buffer) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def flush(self) -> None:
        self._file.flush()


def _header(path: str, key: bytes) -> _Header | None:
    """Read the first part of a file. Raises OSError where it can't be read.

    Returns:
        The header; None if it is damaged, from elsewhere, or not as long as it says.
    """
    try:
        with _opened(path) as file:
            begin = file.read(_START.size)
            magic, length, count, room, size = _START.unpack(begin)
            if magic != _MAGIC or length > _MAX_HEADER or not 0 < count <= _MAX_TOKENS or room < count:
                return None
            start = _START.size + length + 4 * count + _MAC_BYTES
            if os.fstat(file.fileno()).st_size != start + size + _MAC_BYTES:
                return None
            rest = file.read(length + 4 * count)
            mac = file.read(_MAC_BYTES)
        if not hmac.compare_digest(mac, _mac(key, begin, rest)):
            return None
        return _Header(array("i", rest[length:]).tolist(), room, size, json.loads(rest[:length]), mac, start)
    except (ValueError, struct.error):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:  # a symbolic link
            return None
        raise


def _mac(key: bytes, *parts: Buffer) -> bytes:
    digest = hmac.new(key, digestmod="sha256")
    for part in parts:
        digest.update(part)
    return digest.digest()
