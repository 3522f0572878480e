# SPDX-License-Identifier: Apache-2.0
"""Draws the ratios in docs/engine.md as SVG: python docs/chart.py > docs/benchmarks.svg"""

from __future__ import annotations

import re
import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parent / "engine.md"
_ROW = re.compile(
    r"^\| (?P<what>[^|]*\bagainst\b[^|]*|the same with[^|]*) \| (?P<ratio>[\d.]+)(?: ± (?P<half>[\d.]+))? \|"
)
LABEL, BAR, LINE, TOP = 430, 100, 30, 46
"""Pixels: the width of the labels, the length of a ratio of 1, the height of a line, the space above."""


class Ratio(NamedTuple):
    """A measured ratio, with the half-width of its confidence interval."""

    what: str
    ratio: float
    half: float


def ratios(text: str) -> list[Ratio]:
    """The rows of the page's last table that compare one speed with another."""
    lines = text.partition("## Performance")[2].splitlines()
    found = [match for line in lines if "time to" not in line and (match := _ROW.match(line))]
    return [Ratio(match["what"].replace("`", ""), float(match["ratio"]), float(match["half"] or 0)) for match in found]


def draw(rows: list[Ratio]) -> str:
    """Return the chart, a bar for each row, with a line at the ratio of 1."""
    width = LABEL + round(BAR * (max(row.ratio + row.half for row in rows) + 0.5))
    height = TOP + LINE * len(rows) + 12
    one = LABEL + BAR
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>Speed of llama_cpp in relation to other ways of running the same model</title>",
        "<style>text{font:14px system-ui,sans-serif;fill:#334}.bar{fill:#2a9d8f}.line{stroke:#889}</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#f6f8f8"/>',
        f'<text x="{one}" y="24" text-anchor="middle">1 = as fast</text>',
        f'<line class="line" x1="{one}" y1="32" x2="{one}" y2="{height - 8}"/>',
    ]
    for number, row in enumerate(rows):
        y = TOP + LINE * number
        parts += [
            f'<text x="{LABEL - 10}" y="{y + 14}" text-anchor="end">{escape(row.what)}</text>',
            f'<rect class="bar" x="{LABEL}" y="{y}" width="{BAR * row.ratio:.0f}" height="18"/>',
            f'<line class="line" x1="{LABEL + BAR * (row.ratio - row.half):.0f}" y1="{y + 9}" '
            f'x2="{LABEL + BAR * (row.ratio + row.half):.0f}" y2="{y + 9}"/>',
            f'<text x="{LABEL + BAR * (row.ratio + row.half) + 8:.0f}" y="{y + 14}">{row.ratio:.2f}</text>',
        ]
    return "\n".join([*parts, "</svg>"])


if __name__ == "__main__":
    sys.stdout.write(draw(ratios(PAGE.read_text(encoding="utf-8"))) + "\n")
