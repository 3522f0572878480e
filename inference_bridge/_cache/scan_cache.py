# SPDX-License-Identifier: Apache-2.0
"""What a search for models found, remembered until something has changed.

A search notes every directory and file on which its result depends, with its size, its number (inode) and the
time of its last change (ctime: new contents, a rename, other permissions), as they were before it looked inside. It is
remembered only if all of that had been quiet for a while, because file systems tell times in steps, and a
second change within one step would not be seen. Then the same search is answered from memory for as long as
each of these still is as it was. What a single file says is remembered too, so that after a change only
what changed is read again.

The files lie in the user's cache directory, for the user alone. They are replaced as a whole: of two
processes that write one at the same time, the later wins, and readers see one or the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Sequence
from typing import Any

from .. import __version__
from .directories import user_directory

QUIET_SECONDS = 2.0
MAX_BYTES = 64 << 20
MAX_SEARCHES = 16

_PACKAGE = os.path.dirname(os.path.dirname(__file__))

_Stamp = tuple[int, int, int] | None
"""Size, inode, and time of the last change in nanoseconds; None for what is not there."""


def code(*files: str) -> list[str]:
    """What tells one state of these files of this library from another: in a source tree the version does not."""
    paths = [os.path.join(_PACKAGE, file) for file in files]
    return [str(os.stat(path).st_mtime_ns) for path in paths if os.path.exists(path)]


class Memory:
    """Of the search called `name` for `what`, a list of str. `form` changes with what is remembered."""

    def __init__(self, name: str, what: Sequence[str], form: Sequence[str]) -> None:
        self._about = [__version__, list(what), list(form)]
        key = zlib.crc32(json.dumps(self._about).encode())
        self._name = f"{name}-{key:08x}"
        self._stamps: dict[str, _Stamp] = {}
        self._facts: dict[str, list[Any]] = {}
        self._known: dict[str, list[Any]] | None = None
        self._begun = time.time_ns()
        self.trusted = True
        """False keeps the result from being remembered: it depends on more than was noted."""

    def result(self) -> Any:
        """What was remembered; None if there is nothing, or anything it depends on has changed."""
        table = read_table(f"{self._name}.json", self._about)
        if table is None:
            return None
        try:
            for path, size, inode, changed in zip(table["paths"], *table["stamps"], strict=True):
                try:  # not by stamp(): there may be thousands
                    found = os.stat(path)
                except (OSError, ValueError):
                    if size is not None:
                        return None
                else:
                    if found.st_size != size or found.st_ino != inode or found.st_ctime_ns != changed:
                        return None
            return table["result"]
        except (KeyError, TypeError, ValueError):
            return None

    def note(self, path: str, found: os.stat_result | None = None) -> None:
        """The result depends on `path`, which is about to be looked into. `found`: it was asked already."""
        self._stamps[path] = _stamp_of(found) if found is not None else stamp(path)

    def facts(self, path: str) -> list[Any] | None:
        """What the noted file said when it was as it is now."""
        if self._known is None:
            self._known = (read_table(f"{self._name}-files.json", self._about) or {}).get("facts")
            if not isinstance(self._known, dict):
                self._known = {}
        entry, noted = self._known.get(path), self._stamps.get(path)
        if noted is None or not isinstance(entry, list) or entry[:3] != list(noted):
            return None
        self._facts[path] = entry
        return entry[3:]

    def learn(self, path: str, facts: Sequence[Any]) -> None:
        """Remember what the noted file says."""
        noted = self._stamps.get(path)
        if noted is not None and self._is_quiet(noted):
            self._facts[path] = [*noted, *facts]

    def save(self, result: Any) -> None:
        """Remember the result, and the facts. Where that can't be, the next search does the work again."""
        if self._facts != self._known:
            write_table(f"{self._name}-files.json", {"about": self._about, "facts": self._facts})
        if self.trusted and all(map(self._is_quiet, self._stamps.values())):
            stamps = [noted or (None, None, None) for noted in self._stamps.values()]
            table = {
                "about": self._about,
                "paths": list(self._stamps),
                "stamps": list(zip(*stamps, strict=True)),
                "result": result,
            }
            write_table(f"{self._name}.json", table)

    def _is_quiet(self, noted: _Stamp) -> bool:
        return noted is None or abs(self._begun - noted[2]) > QUIET_SECONDS * 1e9


def stamp(path: str) -> _Stamp:
    """The stamp of the file at `path`; None if there is none."""
    try:
        return _stamp_of(os.stat(path))
    except (OSError, ValueError):
        return None


def _stamp_of(found: os.stat_result) -> _Stamp:
    return found.st_size, found.st_ino, found.st_ctime_ns


# ---------------------------------------------------------------- files


def directory() -> str:
    """Where the files lie; no such directory need exist."""
    return user_directory("cache")


def read_table(name: str, about: list[Any]) -> dict[str, Any] | None:
    """The JSON object in the cache file `name`, if this user alone can write it and its "about" is `about`."""
    try:
        with open(os.path.join(directory(), name), "rb") as file:
            found = os.fstat(file.fileno())
            if found.st_uid != os.getuid() or found.st_mode & 0o022 or found.st_size > MAX_BYTES:
                return None
            table = json.loads(file.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return table if isinstance(table, dict) and table.get("about") == about else None


def write_table(name: str, table: dict[str, Any]) -> None:
    """Replace the cache file `name` by `table`, as JSON, readable by this user alone. Errors are ignored."""
    import tempfile

    temporary = None
    try:
        place = directory()
        os.makedirs(place, mode=0o700, exist_ok=True)
        data = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
        descriptor, temporary = tempfile.mkstemp(dir=place, prefix=".writing-")  # for its owner alone
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, os.path.join(place, name))
        _prune(place)
    except (OSError, ValueError):
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _prune(place: str) -> None:
    """Forget the searches that were made longest ago, and what a writer left that was killed."""
    with os.scandir(place) as entries:
        files = sorted(
            (entry for entry in entries if entry.name.endswith(".json") or entry.name.startswith(".writing-")),
            key=lambda entry: entry.stat().st_mtime,
            reverse=True,
        )
    for entry in files[2 * MAX_SEARCHES :]:
        os.unlink(entry.path)
