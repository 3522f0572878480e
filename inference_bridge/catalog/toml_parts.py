# SPDX-License-Identifier: Apache-2.0
"""Reads the valid parts of a TOML file with mistakes, and finds the places of the mistakes.

A TOML parser stops at the first mistake. So a file that does not parse is split into blocks: a
table header with the lines after it, or a top-level key with its value. A block with a mistake is ignored, together
with all other blocks of the same table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

MAX_BLOCKS = 1000
"""Maximum number of blocks that are tried one by one. Each trial parses all earlier blocks again."""
_LEVELS = 2
"""Number of names of a table header that identify an entry: "models" and the model's name."""

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
    kept: list[tuple[tuple[str, ...], str]] = []
    table: dict[str, Any] = {}
    for key, start, block in blocks:
        bad = {mistake.key for mistake in mistakes}
        if key and key[:_LEVELS] in bad:
            continue
        # Keep each block at its line in the file, so that the parser reports the right line numbers.
        before = "".join(part for _, part in kept)
        alone = "\n" * (start - before.count("\n")) + block
        try:
            table = tomllib.loads(before + alone)
            kept.append((key, alone))
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            mistakes.append(_mistake(key[:_LEVELS], error, before + alone))
            kept = [
                (other, part if other[:_LEVELS] != key[:_LEVELS] or not key else _blank(part)) for other, part in kept
            ]
            try:
                table = tomllib.loads("".join(part for _, part in kept))
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


def _blocks(text: str) -> list[tuple[tuple[str, ...], int, str]]:
    """Return for each block: its names, the number of lines before it, and its text."""
    blocks: list[tuple[tuple[str, ...], int, str]] = []
    in_table = False
    for number, line in enumerate(text.splitlines(keepends=True)):
        if line.lstrip().startswith("[") and _is_header(line):
            header = _HEADER.match(line)
            blocks.append((_names(header[1] if header else line), number, line))
            in_table = True
        elif not in_table and (entry := _KEY.match(line)):
            blocks.append((_names(entry[1]), number, line))
        elif blocks:
            names, start, before = blocks[-1]
            blocks[-1] = (names, start, before + line)
        else:
            blocks.append(((), number, line))
    return blocks


def _is_header(line: str) -> bool:
    """Return whether a line that begins with "[" is a table header, not an item of an array over several lines."""
    return not line[0].isspace() and not line.rstrip().endswith(",")


def _names(text: str) -> tuple[str, ...]:
    return tuple(next(filter(None, found.groups()), "") for found in _NAME.finditer(text))


def _mistake(key: tuple[str, ...], error: Exception, text: str) -> Mistake:
    message = str(error) or "it is nested too deep"
    found = _PLACE.search(message)
    line, column = (int(found[1]), int(found[2])) if found and found[1] else (text.rstrip("\n").count("\n") + 1, 1)
    return Mistake(key, f"not valid TOML: {_PLACE.sub('', message)}", line, column)


def _blank(text: str) -> str:
    return "\n" * text.count("\n")
