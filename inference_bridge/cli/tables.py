# SPDX-License-Identifier: Apache-2.0
"""What the commands print: tables on a terminal, and for other programs a line a row with tabs between."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from ..errors import printable


def show(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table. Piped, it has no head, and no value is padded."""
    lines = [["" if value is None else printable(str(value)) for value in row] for row in rows]
    if not sys.stdout.isatty():
        for line in lines:
            click.echo("\t".join(" ".join(value.split()) for value in line))
        return
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    for number, line in enumerate([list(head), *lines] if any(head) else lines):
        text = "  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip()
        click.echo(click.style(text, underline=True) if number == 0 and any(head) else text)


def title(text: str) -> None:
    click.echo(click.style(text, bold=True) if sys.stdout.isatty() else text)


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
