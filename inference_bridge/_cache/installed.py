# SPDX-License-Identifier: Apache-2.0
"""What the distributions say that are installed here: which ship a GGUF file, and which are plugins of this library.

Read from what installers record (https://packaging.python.org/specifications/recording-installed-packages,
.../entry-points) in each directory of sys.path, and remembered until something is installed there, or removed:
importlib.metadata takes longer, to be imported and to look through all of them, than the rest of a command that
lists a thousand models.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

from .scan_cache import Memory, code

GROUP = "inference_bridge"

MAX_RECORD_BYTES = 64 << 20


class Plugin(NamedTuple):
    """An entry point of `GROUP`: the distribution's normalised name, the entry point's, and what it refers to."""

    distribution: str
    name: str
    value: str

    def load(self) -> object:
        """Import it. Raises whatever that raises."""
        from importlib.metadata import EntryPoint

        return EntryPoint(self.name, self.value, GROUP).load()


class _Found(NamedTuple):
    """In one directory of sys.path: the distributions' names, their plugins, and the directories with a GGUF file."""

    names: list[str]
    plugins: list[Plugin]
    directories: list[str]


def model_directories() -> list[str]:
    """Directories of installed packages that ship a GGUF file."""
    return sorted({directory for found in _everywhere() for directory in found.directories})


def plugins() -> list[Plugin]:
    """Sorted; of two installations of one distribution the first in sys.path, which is what Python imports."""
    seen: set[str] = set()
    plugins: list[Plugin] = []
    for found in _everywhere():
        plugins += [plugin for plugin in found.plugins if plugin.distribution not in seen]
        seen.update(found.names)
    return sorted(plugins)


def normal(name: str) -> str:
    """A distribution's name as packaging tools compare it (PyPA's name normalisation)."""
    import re

    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _everywhere() -> Iterator[_Found]:
    yield from map(_in, dict.fromkeys(os.path.abspath(path) for path in sys.path))


def _in(root: str) -> _Found:
    memory = Memory("installed", [root], code(os.path.join("_cache", "installed.py")))
    remembered = memory.result()
    if remembered is not None:
        names, plugins, directories = remembered
        return _Found(names, [Plugin(*plugin) for plugin in plugins], directories)
    memory.note(root)
    found = _read_all(root, memory)
    if found.names:  # where there is none, looking costs no more than remembering
        memory.save(found)
    return found


def _read_all(root: str, memory: Memory) -> _Found:
    found = _Found([], [], [])
    try:
        with os.scandir(root) as entries:
            records = sorted(entry.path for entry in entries if entry.name.endswith((".dist-info", ".egg-info")))
    except NotADirectoryError:
        return _in_archive(root)
    except OSError:
        return found
    directories: set[str] = set()
    for record in records:
        name = normal(os.path.basename(record).rpartition(".")[0].partition("-")[0])
        found.names.append(name)
        listed = os.path.join(record, "entry_points.txt")
        if record.endswith(".egg-info"):  # that of a source tree is rewritten in place
            memory.note(listed)
        text = _read(listed)
        if GROUP.encode() in text:
            try:
                found.plugins.extend(_plugins(name, text.decode("utf-8")))
            except Exception as error:  # not UTF-8, or no INI
                _warn(listed, error)
                memory.trusted = False  # or the next time would not say so
        files = _read(os.path.join(record, "RECORD"))
        if b".gguf" in files:
            directories |= _directories_of_gguf(root, files.decode("utf-8", "replace"))
    found.directories.extend(sorted(directories))
    return found


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_RECORD_BYTES)
    except OSError:
        return b""


def _plugins(distribution: str, text: str) -> list[Plugin]:
    """Those in the text of an entry_points.txt, "in INI format, as read by Python's configparser module"."""
    from configparser import ConfigParser

    parser = ConfigParser(delimiters="=", interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    entries = parser.items(GROUP) if parser.has_section(GROUP) else []
    return [Plugin(distribution, name, value) for name, value in entries]


def _in_archive(root: str) -> _Found:
    """A zip file in sys.path has plugins, and no files to load."""
    from importlib.metadata import distributions

    found = _Found([], [], [])
    for distribution in distributions(path=[root]):
        name = normal(distribution.name)
        found.names.append(name)
        entries = distribution.entry_points.select(group=GROUP)
        found.plugins.extend(Plugin(name, entry.name, entry.value) for entry in entries)
    return found


def _warn(path: str, error: Exception) -> None:
    import logging

    logging.getLogger(__name__).warning("the plugins in %s are left out: %s", path, error)


def _directories_of_gguf(root: str, record: str) -> set[str]:
    import csv

    rows = csv.reader(line for line in record.splitlines() if ".gguf" in line)
    places = {os.path.dirname(row[0]) for row in rows if row and row[0].endswith(".gguf")}
    # One beside the packages would have all of them searched.
    return {os.path.normpath(os.path.join(root, place)) for place in places if place}
