# SPDX-License-Identifier: Apache-2.0
"""What every benchmark shares: the machine's facts, timed runs side by side, one table, one JSON file.

Figures mean something only as ratios or differences within one run, so the rivals take
turns: whatever else the machine does hits all of them alike.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options all benchmarks have."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--json", type=Path, metavar="FILE", help="write facts and figures there")
    return options


def take_turns(rivals: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run each rival once a round, after one round that is not counted; the order turns each time.

    A rival answers with its own measurement, of whatever kind.
    """
    for measure in rivals.values():
        measure()
    figures: dict[str, list[T]] = {name: [] for name in rivals}
    for number in range(rounds):
        order = list(rivals)[:: 1 if number % 2 == 0 else -1]
        for name in order:
            figures[name].append(rivals[name]())
    return figures


def difference(figures: Sequence[float], against: Sequence[float]) -> tuple[float, float]:
    """The median of the rounds' differences, and the half-width of its 95 % interval.

    A slow spell hits both sides of a pair. The interval is 1.57 IQR / sqrt(n) (McGill,
    Tukey, Larsen: Variations of Box Plots, 1978).
    """
    pairs = [a - b for a, b in zip(figures, against, strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4)
    return middle, 1.57 * (high - low) / math.sqrt(len(pairs))


def facts(*packages: str) -> dict[str, Any]:
    """The machine, Python, and the versions of `packages`."""
    return {
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        named = ""
    return named or platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def show(facts: Mapping[str, Any], head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the facts on one line and the rows as a table, its first column to the left."""
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        print("  ".join([line[0].ljust(widths[0]), *cells]))


def write(path: Path | None, facts: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Write both to `path`, if there is one, as JSON."""
    if path is not None:
        path.write_text(json.dumps({"facts": facts, "figures": figures}, indent=2) + "\n", encoding="utf-8")
