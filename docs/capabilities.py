# SPDX-License-Identifier: Apache-2.0
"""The table of capabilities, from the runs of the contract suites.

    python -m pytest tests/*/*/test_contract.py --contract-report report.json
    python docs/capabilities.py report.json                      print it
    python docs/capabilities.py report.json --write README.md    put it between the markers of a page

The markers are `<!-- capabilities -->` and `<!-- /capabilities -->`, each in a line of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROWS = {
    "chat": "conversations",
    "tools": "tools",
    "json_schema": "JSON Schema",
    "reasoning": "reasoning",
    "token_ids": "token ids",
    "logprobs": "log probabilities",
    "logits": "logits",
    "stats": "statistics",
}
"""Capabilities, and what the table calls them. Others follow in alphabetical order."""

BEGIN, END = "<!-- capabilities -->", "<!-- /capabilities -->"


def table(suites: Sequence[dict[str, Any]], *, options: bool = False) -> str:
    """Markdown: a column for each model that ran the whole suite, a row for each capability; then its options."""
    suites = sorted((suite for suite in suites if suite.get("whole") and "backend" in suite), key=_heading)
    others = sorted({name for suite in suites for name in suite["capabilities"]} - ROWS.keys())
    rows = [["", *map(_heading, suites)]]
    for name in [*ROWS, *others]:
        rows.append([ROWS.get(name, name), *("yes" if name in suite["capabilities"] else "no" for suite in suites)])
    for option in sorted({option for suite in suites for option in suite["options"]}) if options else ():
        rows.append([f"`{option}`", *("yes" if option in suite["options"] else "no" for suite in suites)])
    rows.append(["contract tests passed", *map(_passed, suites)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _heading(suite: dict[str, Any]) -> str:
    """The backend, and what the test's class adds to it: "http: llama server" of TestLlamaServer."""
    name = suite["suite"].rpartition("::")[2].removeprefix("Test")
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    return str(suite["backend"]) if words == "model" else f"{suite['backend']}: {words}"


def _passed(suite: dict[str, Any]) -> str:
    outcomes = list(suite["tests"].values())
    run = [outcome for outcome in outcomes if outcome != "skipped"]
    return f"{run.count('passed')} of {len(run)}"


def written(page: str, text: str) -> str:
    """`page` with `text` between its markers. Raises ValueError where there are none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the table of capabilities from reports of the contract suites.")
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT", help="written by pytest --contract-report")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a Markdown page with the markers")
    parser.add_argument("--options", action="store_true", help="a row for each option too")
    asked = parser.parse_args(arguments)
    suites = [suite for path in asked.reports for suite in json.loads(path.read_text(encoding="utf-8"))["suites"]]
    text = table(suites, options=asked.options)
    if asked.write is None:
        sys.stdout.write(text + "\n")
        return 0
    try:
        page = written(asked.write.read_text(encoding="utf-8"), text)
    except ValueError as error:
        sys.stderr.write(f"{asked.write}: {error}\n")
        return 1
    asked.write.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
