# SPDX-License-Identifier: Apache-2.0
"""Output of the commands: tables on a terminal, and lines with tabs or JSON for other programs."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import click

from ..errors import printable

_GAP = "  "
_NARROWEST = 12
"""Minimum width of a column, in characters, when a table is narrowed to the terminal's width."""


def show(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table.

    On a terminal, columns are aligned, and long cells are wrapped within their column. If the terminal is too narrow
    for that, each row is printed as a block with one line for each cell. Otherwise each row is one line with tabs
    between its values, and the head is the first line.

    Args:
        head: The names of the columns. All empty: the table has no head.
        rows: The values. None is an empty cell.
    """
    cells = [["" if value is None else printable(str(value)) for value in row] for row in rows]
    lines = [list(head), *cells] if any(head) else cells
    if not sys.stdout.isatty():
        for line in lines:
            click.echo("\t".join(" ".join(value.split()) for value in line))
        return
    if not lines:
        return
    available = shutil.get_terminal_size().columns
    widths = _fitted([max(map(len, column)) for column in zip(*lines, strict=True)], available)
    if _total(widths) > available:
        _show_blocks(head, cells, available)
        return
    for number, line in enumerate(lines):
        wrapped = [_wrapped(value, width) for value, width in zip(line, widths, strict=True)]
        for parts in itertools.zip_longest(*wrapped, fillvalue=""):
            text = _GAP.join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
            click.echo(_styled(text, underline=True) if number == 0 and any(head) else text)


def _show_blocks(head: Sequence[str], rows: Sequence[Sequence[str]], available: int) -> None:
    """Print each row as a block: its first cell, then a line with the column's name for each other non-empty cell."""
    label = max(map(len, head[1:]), default=0)
    for first, *others in rows:
        click.echo("\n".join(_styled(part, bold=True) for part in _wrapped(first, available)))
        for name, value in zip(head[1:], others, strict=True):
            start = _GAP + (name.ljust(label) + _GAP if label else "")
            for part in _wrapped(value, max(available - len(start), 1)) if value else ():
                click.echo(start + part)
                start = " " * len(start)


def _wrapped(text: str, width: int) -> list[str]:
    """Return the lines of a cell. Names are broken after hyphens, but not words in a sentence, such as a command's."""
    return textwrap.wrap(text, max(width, 1), break_on_hyphens=" " not in text) or [""]


def _fitted(widths: list[int], available: int) -> list[int]:
    """Narrow the widest columns until the table fits, or until all have the minimum width."""
    fitted = list(widths)
    while _total(fitted) > available and max(fitted) > _NARROWEST:
        fitted[fitted.index(max(fitted))] -= 1
    return fitted


def _total(widths: Sequence[int]) -> int:
    """Return the width of a table. Empty columns need no gap."""
    return sum(widths) + len(_GAP) * (len([width for width in widths if width]) - 1)


def title(text: str) -> None:
    click.echo(_styled(text, bold=True))


def _styled(text: str, **style: bool) -> str:
    """Return the text, styled if it goes to a terminal and NO_COLOR is not set (https://no-color.org)."""
    return click.style(text, **style) if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def show_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def size(count: int) -> str:
    """Format a number of bytes: 98 MB, 4.7 GB. The units are powers of 1000, as for disks and downloads."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.1f} {units[0]}" if value < 9.95 and units[0] != "B" else f"{value:.0f} {units[0]}"


def ago(seconds: float) -> str:
    """Format a duration: 40 s, 5 min, 2 h, 3 d."""
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
