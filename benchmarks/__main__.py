# SPDX-License-Identifier: Apache-2.0
"""Run all benchmarks one after the other, and print one table of their ratios. Each gets this command's arguments."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import Line, show

ALL = ("startup", "cli", "engine", "prefixes", "mlx", "decisions", "http", "serve", "langchain")


def main() -> None:
    rows: list[list[str]] = []
    machine: dict[str, Any] = {}
    failed = []
    with tempfile.TemporaryDirectory() as directory:
        for name in ALL:
            print(f"{name} …", file=sys.stderr, flush=True)
            path = Path(directory, f"{name}.json")
            command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(path), *sys.argv[1:]]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                failed.append(name)
                continue
            told = json.loads(path.read_text(encoding="utf-8"))
            machine |= told["facts"]
            for fields in told["lines"]:
                fields.pop("reached")
                line = Line(**fields)
                within = f"± {line.within:.3f}" if line.within else ""
                rows.append([f"{name}: {line.work}", line.against, line.result, within, line.wanted, line.verdict])
    show(machine, ["work", "against", "ratio", "", "reach", "reached"], rows)
    if failed:
        sys.exit(f"these failed, see their messages above: {', '.join(failed)}")


if __name__ == "__main__":
    main()
