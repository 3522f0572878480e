# SPDX-License-Identifier: Apache-2.0
"""The results of trial loads of model files, stored in the user's cache directory.

A verdict applies to a set of files: the model's, and the library that loaded them. It is valid while the size, inode
and time of last change of each file stay the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .._cache import scan_cache

MAX_VERDICTS = 4096

_NAME = "verdicts"
_ABOUT = ["verdicts", 1]


class Verdict(NamedTuple):
    """The result of a trial load. `problem`: what is wrong with the files; None if they could be loaded."""

    problem: str | None


def find(files: Sequence[str]) -> Verdict | None:
    """Return the verdict on `files`. None: there is none, or one of the files has changed."""
    entry = _entries().get(_key(files))
    return _verdict(entry) if entry is not None and _is_current(entry, files) else None


def remember(files: Sequence[str], problem: str | None, *, shown_on: str = "") -> None:
    """Store the verdict on `files`. Don't store it if a file changed so recently that a next change could be missed.

    Args:
        files: Absolute paths.
        problem: What is wrong, or None.
        shown_on: The path of the model on which discovery shows the problem; "" if it belongs to a combination.
    """
    stamps = [scan_cache.stamp(path) for path in files]
    newest = time.time_ns() - int(scan_cache.QUIET_SECONDS * 1e9)
    if not all(stamp is not None and stamp[2] < newest for stamp in stamps):
        return
    entries = dict(_entries())
    entries.pop(_key(files), None)
    entries[_key(files)] = [problem, shown_on, stamps]
    for oldest in list(entries)[:-MAX_VERDICTS]:
        del entries[oldest]
    scan_cache.write_table(_NAME, {"about": _ABOUT, "entries": entries})


def problems() -> dict[str, str]:
    """Return the problems that discovery shows, by the path of the model."""
    found: dict[str, str] = {}
    for key, entry in _entries().items():
        verdict = _verdict(entry)
        if verdict is not None and verdict.problem and _is_current(entry, key.split("\0")) and entry[1]:
            found[entry[1]] = verdict.problem
    return found


def _key(files: Sequence[str]) -> str:
    return "\0".join(files)


def _entries() -> Mapping[str, Any]:
    table = scan_cache.read_table(_NAME, _ABOUT)
    entries = table.get("entries") if table is not None else None
    return entries if isinstance(entries, dict) else {}


def _verdict(entry: Any) -> Verdict | None:
    if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[0], str | None):
        return None
    return Verdict(entry[0])


def _is_current(entry: Any, files: Sequence[str]) -> bool:
    if _verdict(entry) is None or not isinstance(entry[1], str):
        return False
    stamps = [scan_cache.stamp(path) for path in files]
    return None not in stamps and [list(stamp or ()) for stamp in stamps] == entry[2]
