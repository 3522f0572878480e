# SPDX-License-Identifier: Apache-2.0
"""What the commands print: tables on a terminal; for other programs lines with tabs, or JSON."""

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
"""Characters that a column keeps when a table is fitted into the terminal's width."""


def show(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table.

    On a terminal, columns are aligned, and a cell that does not fit into the terminal's width is wrapped within its
    column. Piped, each row is a line of values with tabs between, the head first.

    Args:
        head: The names of the columns; empty strings for a table without a head.
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
    widths = _fitted([max(map(len, column)) for column in zip(*lines, strict=True)], shutil.get_terminal_size().columns)
    for number, line in enumerate(lines):
        wrapped = [textwrap.wrap(value, width) or [""] for value, width in zip(line, widths, strict=True)]
        for parts in itertools.zip_longest(*wrapped, fillvalue=""):
            text = _GAP.join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
            click.echo(_styled(text, underline=True) if number == 0 and any(head) else text)


def _fitted(widths: list[int], available: int) -> list[int]:
    """The widths of the columns, with the widest ones narrowed until the table fits, as far as that is possible."""
    fitted = list(widths)
    while sum(fitted) + len(_GAP) * (len(fitted) - 1) > available and max(fitted) > _NARROWEST:
        fitted[fitted.index(max(fitted))] -= 1
    return fitted


def title(text: str) -> None:
    click.echo(_styled(text, bold=True))


def _styled(text: str, **style: bool) -> str:
    """The text, styled on a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return click.style(text, **style) if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def show_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def size(count: int) -> str:
    """Bytes for people: 98 MB, 4.7 GB; in thousands, as disks and downloads are counted."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.1f} {units[0]}" if value < 9.95 and units[0] != "B" else f"{value:.0f} {units[0]}"


def ago(seconds: float) -> str:
    """A span of time for people: 40 s, 5 min, 2 h."""
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
