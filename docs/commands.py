# SPDX-License-Identifier: Apache-2.0
"""Writes the reference of the command line, from the commands themselves: python docs/commands.py > docs/commands.md"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import cast

import click

from inference_bridge.cli.commands import bridge

INTRODUCTION = """\
# Reference: the commands `llm bridge` and `inference-bridge`

Both names run the same commands: `llm bridge COMMAND` where llm is installed, `inference-bridge COMMAND` everywhere.
A table that is piped has tabs between its values, and its head is the first line; `--json` prints JSON instead. An
error is one line on stderr, and the exit code is 1; for wrong arguments it is 2. `NO_COLOR` turns colours off.
"""


def page() -> Iterator[str]:
    yield INTRODUCTION
    root = click.Context(bridge, info_name="inference-bridge")
    for name, command in bridge.commands.items():
        context = click.Context(command, info_name=name, parent=root, terminal_width=110, max_content_width=110)
        yield f"## {name}\n\n```text\n{command.get_help(context)}\n```\n"
        for inner, part in cast("dict[str, click.Command]", getattr(command, "commands", {})).items():
            within = click.Context(part, info_name=inner, parent=context, terminal_width=110, max_content_width=110)
            yield f"### {name} {inner}\n\n```text\n{part.get_help(within)}\n```\n"


if __name__ == "__main__":
    sys.stdout.write("\n".join(page()))
