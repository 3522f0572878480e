# SPDX-License-Identifier: Apache-2.0
"""Draws a terminal session as SVG: python docs/recording.py > docs/terminal.svg

The commands really run, in an empty home, and their output is what is drawn. The picture loads nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from html import escape
from pathlib import Path

COLUMNS = 96
CHARACTER, LINE, MARGIN = 8.4, 20, 16
"""Width and height of a character, and the space around the text, in pixels."""

MODEL = "SmolLM2-135M-Instruct.Q4_1"
COMMANDS = (
    "llm bridge models",
    f"llm bridge add smol {MODEL} -o temperature 0.2",
    "llm -m smol -o max_tokens 48 -o seed 1 'Write a sentence about cats.'",
    "llm -m smol --schema 'name, age int' -o seed 1 'Invent a dog'",
)


def record(commands: tuple[str, ...]) -> list[tuple[str, str]]:
    """Run commands one after the other in an empty home.

    Returns:
        (command, output) of each.

    Raises:
        CalledProcessError: A command failed.
    """
    with tempfile.TemporaryDirectory() as home:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("INFERENCE_BRIDGE")}
        environment |= {
            "HOME": home,
            "LLM_USER_PATH": f"{home}/llm",
            "LLM_LOAD_PLUGINS": "inference-bridge",
            "XDG_CONFIG_HOME": f"{home}/.config",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        shown = []
        for command in commands:
            done = subprocess.run(
                ["bash", "-c", command], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                check=True,
            )  # fmt: skip
            shown.append((command, done.stdout.replace(home, "~")))
        return shown


def aligned(lines: list[str]) -> list[str]:
    """Lines whose values have tabs between them, as a table; other lines as they are."""
    if not all("\t" in line for line in lines):
        return lines
    columns = list(zip(*(line.split("\t") for line in lines), strict=True))
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True))
        for row in zip(*columns, strict=True)
    ]


def draw(session: list[tuple[str, str]]) -> str:
    """Return the SVG of a session, as wide as its longest line."""
    lines: list[tuple[str, str]] = []
    for command, output in session:
        lines.append(("command", f"$ {command}"))
        for line in aligned(output.rstrip("\n").split("\n")):
            lines += [("output", part) for part in textwrap.wrap(line, COLUMNS, drop_whitespace=False) or [""]]
        lines.append(("output", ""))
    width = round(COLUMNS * CHARACTER + 2 * MARGIN)
    height = len(lines) * LINE + 2 * MARGIN
    places = range(MARGIN + 14, height, LINE)
    rows = [
        f'<text class="{kind}" x="{MARGIN}" y="{y}" xml:space="preserve">{escape(text)}</text>'
        for y, (kind, text) in zip(places, lines, strict=False)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            "<title>llm answers questions with a local model</title>",
            "<style>text{font:14px ui-monospace,Menlo,Consolas,monospace;fill:#d8dee9}.command{fill:#8fd3c8}</style>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#1b2229"/>',
            *rows,
            "</svg>",
        ]
    )


if __name__ == "__main__":
    sys.stdout.write(draw(record(COMMANDS)) + "\n")
