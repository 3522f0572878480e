# SPDX-License-Identifier: Apache-2.0
"""Reads the valid parts of a TOML file with mistakes, and finds the places of the mistakes.

A TOML parser stops at the first mistake. So a file that does not parse is split into blocks: the header of an entry's
table with the lines after it, or a key with its value at the top level or in `[models]`. A block with a mistake is
ignored, together with all other blocks of the same entry.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

MAX_BLOCKS = 1000
"""Maximum number of blocks that are tried one by one. Each trial parses all earlier blocks again."""
_LEVELS = 2
"""Number of names of a table header that identify an entry: "models" and the model's name."""

_INDENTED_HEADER = re.compile(r"\s*\[\[?\s*(?!(?:true|false|inf|nan)\b)[A-Za-z_]")
"""An indented line that begins so is a table header. An item of an array over several lines begins with a value."""
_UNQUOTED = re.compile(r"""\s*\[([A-Za-z0-9_-]+)\.([^"'\[\]]+)\]\s*(#.*)?$""")
_HEADER = re.compile(r"\s*\[\[?(.+?)\]\]?\s*(#.*)?$")
_KEY = re.compile(
    r"""\s*((?:"[^"\n]*"|'[^'\n]*'|[A-Za-z0-9_-]+)(?:\s*\.\s*(?:"[^"\n]*"|'[^'\n]*'|[A-Za-z0-9_-]+))*)\s*="""
)
_NAME = re.compile(r""""([^"\n]*)"|'([^'\n]*)'|([A-Za-z0-9_-]+)""")
_PLACE = re.compile(r"\s*\(at line (\d+), column (\d+)\)|\s*\(at end of document\)")


class Mistake(NamedTuple):
    """A mistake. `key`: the names of the ignored entry, () for the whole file; `line` and `column` count from 1."""

    key: tuple[str, ...]
    message: str
    line: int
    column: int


class _Block(NamedTuple):
    """A part of a file.

    key     the names of what it sets
    start   the number of lines before it
    text    its lines
    header  `start` of the block that has the header of its table; -1: it has a header itself, or is in no table
    """

    key: tuple[str, ...]
    start: int
    text: str
    header: int = -1


def read(text: str) -> tuple[dict[str, Any], list[Mistake]]:
    """Return the valid part of `text` as a table, and the mistakes in the rest. Never raises."""
    import tomllib

    try:
        return tomllib.loads(text), []
    except tomllib.TOMLDecodeError as error:
        whole = _mistake((), error, text)
    except RecursionError:
        return {}, [Mistake((), "it is nested too deep", 1, 1)]
    blocks = _blocks(text)
    if len(blocks) > MAX_BLOCKS:
        return {}, [whole]
    mistakes: list[Mistake] = []
    kept: list[_Block] = []
    left_out: set[int] = set()
    table: dict[str, Any] = {}
    for block in blocks:
        entry = block.key[:_LEVELS]
        if block.header in left_out or (entry and entry in {mistake.key for mistake in mistakes}):
            continue
        # Keep each block at its line in the file, so that the parser reports the right line numbers.
        before = "".join(part.text for part in kept)
        alone = "\n" * (block.start - before.count("\n")) + block.text
        try:
            table = tomllib.loads(before + alone)
            kept.append(block._replace(text=alone))
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            mistakes.append(_mistake(entry, error, before + alone, block.text))
            left_out.add(block.start)
            left_out |= {part.start for part in kept if entry and part.key[:_LEVELS] == entry}
            kept = [
                part._replace(text=_blank(part.text)) if {part.start, part.header} & left_out else part for part in kept
            ]
            try:
                table = tomllib.loads("".join(part.text for part in kept))
            except (tomllib.TOMLDecodeError, RecursionError):  # pragma: no cover - less than what was read before
                return {}, [whole]
    return table, mistakes or [whole]


def position(text: str, key: Sequence[str]) -> tuple[int, int]:
    """Return the line and column of the entry `key`, or of the nearest table around it; (0, 0) if neither is there."""
    wanted = tuple(key)
    best, found = -1, (0, 0)
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = names = _names(header[1])
        elif entry := _KEY.match(line):
            names = (*table, *_names(entry[1]))
        else:
            continue
        shared = min(len(names), len(wanted))
        if names[:shared] == wanted[:shared] and shared > best:
            best, found = shared, (number, len(line) - len(line.lstrip()) + 1)
    return found


def _blocks(text: str) -> list[_Block]:
    """Return the blocks of a file, in order."""
    blocks: list[_Block] = []
    table: tuple[str, ...] = ()
    header = -1
    for number, line in enumerate(text.splitlines(keepends=True)):
        if line.lstrip().startswith("[") and _is_header(line):
            found = _HEADER.match(line)
            table, header = _names(found[1] if found else line), number
            blocks.append(_Block(table, number, line))
        elif len(table) < _LEVELS and (entry := _KEY.match(line)):
            blocks.append(_Block((*table, *_names(entry[1])), number, line, header))
        elif blocks:
            blocks[-1] = blocks[-1]._replace(text=blocks[-1].text + line)
        else:
            blocks.append(_Block((), number, line))
    return blocks


def _is_header(line: str) -> bool:
    """Return whether a line that begins with "[" is a table header, not an item of an array over several lines."""
    if line[0].isspace():
        return _INDENTED_HEADER.match(line) is not None
    return not line.rstrip().endswith(",")


def _names(text: str) -> tuple[str, ...]:
    return tuple(next(filter(None, found.groups()), "") for found in _NAME.finditer(text))


def _mistake(key: tuple[str, ...], error: Exception, text: str, block: str = "") -> Mistake:
    """Return the mistake at which the parser stopped: `text` is what it read, `block` the part with the mistake."""
    message = str(error) or "it is nested too deep"
    found = _PLACE.search(message)
    line, column = (int(found[1]), int(found[2])) if found and found[1] else (text.rstrip("\n").count("\n") + 1, 1)
    told = f"not valid TOML: {_PLACE.sub('', message)}"
    header = _UNQUOTED.match(block.partition("\n")[0])
    if header and re.fullmatch(r"[A-Za-z0-9_.-]+", header[2]) is None:
        told += (
            f'. A name with other characters than letters, digits, - and _ needs quotes: [{header[1]}."{header[2]}"]'
        )
    return Mistake(key, told, line, column)


def _blank(text: str) -> str:
    return "\n" * text.count("\n")
