# SPDX-License-Identifier: Apache-2.0
"""The table of what each server can do, from the table that the http backend itself uses.

    python docs/servers.py                          print it
    python docs/servers.py --write docs/http.md     put it between the markers of a page

The markers are `<!-- servers -->` and `<!-- /servers -->`, each in a line of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from inference_bridge.backends.http.servers import SERVERS, WHOLE, Server

BEGIN, END = "<!-- servers -->", "<!-- /servers -->"

CAPABILITIES = {
    "tools": "tools",
    "json_schema": "json_schema",
    "logprobs": "logprobs",
    "reasoning": "reasoning",
    "images": "images",
    "audios": "sound",
    "infill": "infill",
}


def capability(name: str) -> Callable[[Server], str]:
    def cell(server: Server) -> str:
        if name in server.reported:
            return "told"
        if name not in server.capabilities:
            return "no"
        return "yes" if name in server.known else "assumed"

    return cell


def option(name: str) -> Callable[[Server], str]:
    return lambda server: "yes" if name in server.options else "no"


def labels(server: Server) -> str:
    if not server.listed:
        return "any"
    if "logprobs" not in server.capabilities and server.listed == Server.listed:
        return "no"
    return "any token" if server.listed == WHOLE else f"{server.listed} likeliest"


def rows() -> list[list[str]]:
    """The cells, the heading first: a row for each server."""
    columns: dict[str, Callable[[Server], str]] = {"": lambda server: server.title, "checked": lambda one: one.tried}
    columns |= {title: capability(name) for name, title in CAPABILITIES.items()}
    columns["forced call"] = lambda server: "yes" if server.forces and "tools" in server.capabilities else "no"
    columns["token ids"] = lambda server: "yes" if server.ids else "no"
    columns["prompt lists"] = lambda server: "yes" if server.lists else "no"
    columns["count_tokens"] = lambda server: "yes" if server.counts else "no"
    columns["`embed(truncate=True)`"] = lambda server: "yes" if server.truncates else "no"
    columns["labels"] = labels
    names = sorted({name for server in SERVERS.values() for name in server.options})
    columns |= {f"`{name}`": option(name) for name in names}
    return [list(columns), *([cell(server) for cell in columns.values()] for server in SERVERS.values())]


def table() -> str:
    """Markdown: a column for each server, a row for each feature."""
    turned = list(zip(*rows(), strict=True))
    lines = [f"| {' | '.join(row)} |" for row in turned]
    return "\n".join([lines[0], "|---" * len(turned[0]) + "|", *lines[1:]])


def written(page: str) -> str:
    """Return `page` with the table between its markers. Raise ValueError where there are none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the table of what each server can do.")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a Markdown page with the markers")
    asked = parser.parse_args(arguments)
    if asked.write is None:
        sys.stdout.write(table() + "\n")
        return 0
    asked.write.write_text(written(asked.write.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
