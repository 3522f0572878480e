# SPDX-License-Identifier: Apache-2.0
"""Caches the results of searches for models until a file or directory changes.

A search records the stamp of every directory and file on which its result depends: the size, the number (inode) and
the time of the last change (ctime: new contents, a rename, other permissions), before it reads them. The result is
saved only if none of them has changed recently: file systems store times in steps, and a second change within one
step would not be noticed. The saved result is returned as long as no stamp has changed. What was read from each single
file is saved too, so that after a change only the changed files are read again.

The cache files are in the user's cache directory, and only this user can read them. A file is always replaced as a
whole: if two processes write it at the same time, the later one wins, and a reader sees one version or the other.
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
"""Size, inode, and time of the last change in nanoseconds. None: the file does not exist."""


def code(*files: str) -> list[str]:
    """Return the times of change of these files of this library. In a source tree, the version does not change."""
    paths = [os.path.join(_PACKAGE, file) for file in files]
    return [str(os.stat(path).st_mtime_ns) for path in paths if os.path.exists(path)]


class Memory:
    """The cache of one search.

    Args:
        name: The name of the search.
        what: The arguments of the search.
        form: The form of the saved results. A result that was saved in another form is not used.
    """

    def __init__(self, name: str, what: Sequence[str], form: Sequence[str]) -> None:
        self._about = [__version__, list(what), list(form)]
        key = zlib.crc32(json.dumps(self._about).encode())
        self._name = f"{name}-{key:08x}"
        self._stamps: dict[str, _Stamp] = {}
        self._facts: dict[str, list[Any]] = {}
        self._known: dict[str, list[Any]] | None = None
        self._begun = time.time_ns()
        self.trusted = True
        """False: the result is not saved, because it depends on something that has no stamp."""

    def result(self) -> Any:
        """Return the saved result. None if no result is saved, or something on which it depends has changed."""
        table = read_table(f"{self._name}.json", self._about)
        if table is None:
            return None
        try:
            for path, size, inode, changed in zip(table["paths"], *table["stamps"], strict=True):
                try:  # without calling stamp(), because there may be thousands of paths
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
        """Record that the result depends on `path`. Call it before reading `path`. `found`: the result of os.stat."""
        self._stamps[path] = _stamp_of(found) if found is not None else stamp(path)

    def facts(self, path: str) -> list[Any] | None:
        """Return what was saved for a noted file. None if nothing was saved, or the file has changed since then."""
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
        """Save what was read from a noted file."""
        noted = self._stamps.get(path)
        if noted is not None and self._is_quiet(noted):
            self._facts[path] = [*noted, *facts]

    def save(self, result: Any) -> None:
        """Save the result and the facts. If they can't be saved, the next search does the work again."""
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
    """Return the stamp of the file at `path`. None if it does not exist."""
    try:
        return _stamp_of(os.stat(path))
    except (OSError, ValueError):
        return None


def _stamp_of(found: os.stat_result) -> _Stamp:
    return found.st_size, found.st_ino, found.st_ctime_ns


# ---------------------------------------------------------------- files


def directory() -> str:
    """Return the directory of the cache files. It need not exist."""
    return user_directory("cache")


def read_table(name: str, about: list[Any]) -> dict[str, Any] | None:
    """Return the JSON object in the cache file `name`, if only this user can write it and its "about" is `about`."""
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
    """Write `table` as JSON into the cache file `name`. Only this user can read it. Errors are ignored."""
    import tempfile

    temporary = None
    try:
        place = directory()
        os.makedirs(place, mode=0o700, exist_ok=True)
        data = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
        descriptor, temporary = tempfile.mkstemp(dir=place, prefix=".writing-")  # only its owner can read it
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, os.path.join(place, name))
        _prune(place)
    except (OSError, ValueError):
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _prune(place: str) -> None:
    """Delete the oldest files, among them temporary files of writers that were killed."""
    with os.scandir(place) as entries:
        files = sorted(
            (entry for entry in entries if entry.name.endswith(".json") or entry.name.startswith(".writing-")),
            key=lambda entry: entry.stat().st_mtime,
            reverse=True,
        )
    for entry in files[2 * MAX_SEARCHES :]:
        os.unlink(entry.path)
