# SPDX-License-Identifier: Apache-2.0
"""The prefix cache on disk: the state of an engine after a sequence of tokens, for later processes.

If a prefix can't be read or written, that is logged, and the engine evaluates it again. The module `files` defines the
format of the files, and explains why they can be trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..hardware import available_memory
from .common import common_length
from .files import (
    CHECKSUM_BYTES,
    MAGIC,
    START,
    STEP,
    SUFFIX,
    Buffer,
    Header,
    checksum,
    directory,
    key_of,
    make_directory,
    opened,
    prune,
    read_header,
    remove,
    scan,
    state_of,
    temporary_file,
)

_log = logging.getLogger(__name__)

MIN_TOKENS = 512
"""Minimum number of tokens that must be saved by reading a file, or gained by writing one."""

_FORMAT = 1
"""Increase this number when the format of the files or of the engines' states changes."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A prefix on disk that begins like a prompt.

    Attributes:
        path: The file.
        count: Number of tokens that it has in common with the prompt.
        tokens: All of its tokens.
        room: Tokens that the state takes in memory before it is cut.
    """

    path: str
    count: int
    tokens: list[int]
    room: int


class PrefixStore:
    """The prefixes of one model with one set of settings.

    Args:
        identity: Returns everything that a state depends on, as JSON values. Called at the first use: it reads files.
        limit: Maximum size of the files of all models, in bytes.
        model: The model's path, which `entries` shows.
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
        self._known: dict[str, tuple[tuple[int, int, int], Header]] = {}
        self._writing: threading.Thread | None = None

    def _open(self) -> bool:
        """Create the directory, the key and the identity at the first use. Return whether the store can be used."""
        if self._name is not None:
            return bool(self._name)
        self._name = ""
        try:
            self._key = key_of(self._place)
            about = json.dumps([_FORMAT, dict(self._identity())], sort_keys=True, default=str)
        except (OSError, ValueError) as error:
            _log.info("there is no prefix cache on disk: %s", error)
            return False
        self._name = hashlib.sha256(about.encode()).hexdigest()[:32]
        return True

    # ------------------------------------------------ reading

    def find(self, tokens: list[int], beyond: int = 0) -> Stored | None:
        """Return the stored prefix with the most tokens in common.

        Args:
            tokens: The part of a prompt that may be reused.
            beyond: Number of its tokens that are already in memory.

        Returns:
            The prefix. None: none has MIN_TOKENS more tokens in common than `beyond`.
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

    def _headers(self) -> Iterator[tuple[str, Header]]:
        """Yield the files of this identity. Damaged ones are removed."""
        found = {}
        for entry in scan(self._place):
            if not entry.name.startswith(f"{self._name}-"):
                continue
            known = self._known.get(entry.path)
            state = state_of(entry)
            if known is None or known[0] != state:
                try:
                    header = read_header(entry.path, self._key)
                except OSError:  # another process has removed the file, or it can't be read now
                    continue
                if header is None or header.about.get("identity") != self._name:
                    remove(entry.path, "is damaged, or was not written by this program")
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
            with opened(stored.path) as file:
                file.seek(header.start)
                state, digest = bytearray(header.size), hmac.new(self._key, header.mac, "sha256")
                view, done = memoryview(state), 0
                while read := file.readinto(view[done : done + STEP]):
                    digest.update(view[done : done + read])
                    done += read
                mac = file.read(CHECKSUM_BYTES + 1)
            if done < header.size or not hmac.compare_digest(mac, digest.digest()):
                remove(stored.path, "is damaged")
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
        """Whether a file is being written. `wake` is called at the end."""
        return self._writing is not None and self._writing.is_alive()

    def wants(self, tokens: list[int], size: int) -> bool:
        """Return whether a prefix is worth a file.

        Args:
            tokens: The tokens of the prefix.
            size: Bytes of the state. Twice as many must be free, because the state is copied.
        """
        if len(tokens) < MIN_TOKENS or size > self.limit or 2 * size > available_memory() or not self._open():
            return False
        found = self.find(tokens)
        return len(tokens) - (found.count if found else 0) >= MIN_TOKENS

    def put(self, tokens: list[int], state: Buffer, *, room: int | None = None, wait: bool = False) -> None:
        """Write a prefix in another thread, which calls `wake` at its end.

        Args:
            tokens: The tokens of the prefix.
            state: The state as bytes. It must not be changed afterwards.
            room: Tokens that the state takes in memory. None: as many as `tokens`.
            wait: Write in this thread. No other thread can be started while the interpreter shuts down.

        Raises:
            RuntimeError: A file is being written, and `wait` is false.
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
        if not self._open():
            return
        begun = time.monotonic()
        state = state.cast("B")
        about = {"identity": self._name, "model": self._model}
        text = json.dumps(about).encode("utf-8", "surrogatepass")
        start = START.pack(MAGIC, len(text), len(tokens), room, len(state))
        ids = array("i", tokens).tobytes()
        head = b"".join((start, text, ids))
        mac = checksum(self._key, head)
        size = len(head) + 2 * CHECKSUM_BYTES + len(state)
        name = f"{self._name}-{hashlib.sha256(ids).hexdigest()[:32]}{SUFFIX}"
        path = os.path.join(self._place, name)
        try:
            make_directory(self._place)
            prune(self._place, self.limit - size)
            with temporary_file(self._place) as (file, temporary):
                digest = hmac.new(self._key, mac, "sha256")
                file.write(head + mac)
                for place in range(0, len(state), STEP):
                    piece = state[place : place + STEP]
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
        """Remove the files whose tokens are a prefix of those of the new file at `path`."""
        for other, header in list(self._headers()):
            if other != path and header.tokens == tokens[: len(header.tokens)]:
                remove(other)

    def close(self) -> None:
        """Wait for the file that is being written, and free the list of files."""
        self.join()
        self._known.clear()
