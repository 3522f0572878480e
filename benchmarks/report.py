# SPDX-License-Identifier: Apache-2.0
"""Shared by all benchmarks: facts about the machine, measurements in turns, a table and a JSON file of the results.

Figures are comparable only within one run, as ratios or differences. The rivals take turns, so that other work on the
machine affects all of them alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--json", type=Path, metavar="FILE", help="write facts and figures to this file")
    options.add_argument("--quick", action="store_true", help="run fewer rounds")
    options.add_argument(
        "--idle-wait",
        type=float,
        default=0,
        metavar="SECONDS",
        help="maximum time to wait until other programs are idle, and to repeat rounds that they disturbed (default 0)",
    )
    return options


def take_turns(
    rivals: Mapping[str, Callable[[], T]], rounds: int, idle: IdleMachine | None = None
) -> dict[str, list[T]]:
    """Run each rival once in each round, after one round that is not counted. Every second round has the reverse order.

    Args:
        rivals: The measurements by name.
        rounds: Number of rounds.
        idle: Waits for an idle machine before each round, and repeats rounds that other programs disturbed.

    Returns:
        The results of each rival, one for each round.
    """
    for measure in rivals.values():
        measure()
    figures: dict[str, list[T]] = {name: [] for name in rivals}
    number = 0
    while number < rounds:
        order = list(rivals)[:: 1 if number % 2 == 0 else -1]
        if idle is not None:
            idle.wait()
        round = {name: rivals[name]() for name in order}
        if idle is None or idle.lasted():
            number += 1
            for name in order:
                figures[name].append(round[name])
    return figures


class IdleMachine:
    """Waits until other programs are idle, and checks whether they stayed idle.

    Args:
        seconds: Maximum time for all waits and repeated rounds.
    """

    LIMIT = 0.05
    """Maximum share of the machine's processor time that other programs may take."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._begun, self._taken = 0.0, 0.0
        self.worst = 0.0
        """The largest share that other programs took in a round that `lasted` accepted."""

    def wait(self) -> None:
        self._mark()
        while self._left > 0:
            time.sleep(0.5)
            self._left -= 0.5
            if self._share() <= self.LIMIT:
                break
            self._mark()
        self._mark()

    def lasted(self) -> bool:
        """Return whether the machine was idle since `wait` returned. Also True when the maximum time is used up."""
        share = self._share()
        if share > self.LIMIT and self._left > 0:
            self._left -= time.perf_counter() - self._begun
            return False
        self.worst = max(self.worst, share)
        return True

    def _mark(self) -> None:
        self._begun, self._taken = time.perf_counter(), _taken_by_others()

    def _share(self) -> float:
        passed = (time.perf_counter() - self._begun) * (os.cpu_count() or 1)
        return max((_taken_by_others() - self._taken) / passed, 0.0) if passed else 0.0


def _taken_by_others() -> float:
    """Return the processor time of other programs, in seconds over all cores."""
    import psutil

    times = psutil.cpu_times()
    busy = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
    return busy - taken_by_us()


def taken_by_us() -> float:
    """Return the processor time of this process and its children, including those that have ended, in seconds."""
    import psutil

    taken = 0.0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            used = process.cpu_times()
            taken += used.user + used.system + used.children_user + used.children_system
    return taken


def difference(figures: Sequence[float], against: Sequence[float]) -> tuple[float, float]:
    """Return the median of the rounds' differences, and the half-width of its 95 % confidence interval.

    The differences are within a round, because a disturbance affects both rivals of a round. The half-width is
    1.57 IQR / sqrt(n) (McGill, Tukey, Larsen: Variations of Box Plots, 1978).
    """
    return _median([a - b for a, b in zip(figures, against, strict=True)])


def ratio(figures: Sequence[float], against: Sequence[float]) -> tuple[float, float]:
    """Return the median of the rounds' ratios, and the half-width of its interval as in `difference`."""
    return _median([a / b for a, b in zip(figures, against, strict=True)])


def _median(pairs: Sequence[float]) -> tuple[float, float]:
    low, middle, high = statistics.quantiles(pairs, n=4)
    return middle, 1.57 * (high - low) / math.sqrt(len(pairs))


def facts(*packages: str) -> dict[str, Any]:
    """Return facts about the machine, and the versions of Python and of `packages`."""
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


@dataclass(frozen=True)
class Line:
    """One line of the table. `reach` is the goal for the ratio or difference: a minimum, or a maximum. 0: no goal."""

    work: str
    against: str
    unit: str
    measured: float = 0.0
    baseline: float = 0.0
    figure: float = 0.0
    within: float = 0.0
    reach: float = 0.0
    at_most: bool = False
    differs: bool = False
    """The figure is a difference in `unit`, not a ratio."""
    missing: str = ""
    """Why there is no figure."""

    @property
    def result(self) -> str:
        return f"{self.figure:+.1f} {self.unit}" if self.differs else f"{self.figure:.3f}"

    @property
    def wanted(self) -> str:
        if not self.reach:
            return ""
        return f"{'≤' if self.at_most else '≥'} {self.reach:g}{f' {self.unit}' if self.differs else ''}"

    @property
    def verdict(self) -> str:
        return {True: "yes", False: "no", None: ""}[self.reached]

    @property
    def reached(self) -> bool | None:
        if self.missing or not self.reach:
            return None
        return self.figure <= self.reach if self.at_most else self.figure >= self.reach


def compare(
    work: str,
    against: str,
    reach: float,
    unit: str,
    measured: Sequence[float],
    baseline: Sequence[float],
    *,
    at_most: bool = False,
    differs: bool = False,
) -> Line:
    """Return a line for the figures of two rivals, round by round. The other arguments are those of Line."""
    figure, within = (difference if differs else ratio)(measured, baseline)
    middle = statistics.median(measured), statistics.median(baseline)
    return Line(work, against, unit, *middle, figure, within, reach, at_most, differs)


def report(facts: Mapping[str, Any], lines: Sequence[Line], idle: IdleMachine, path: Path | None) -> None:
    """Print the facts and a table of the lines. Also write both to `path` as JSON, unless it is None."""
    told = {**facts, "others took": f"at most {idle.worst:.0%}"}
    head = ["work", "against", "measured", "baseline", "", "ratio", "", "reach", "reached"]
    show(told, head, [_row(line) for line in lines])
    if path is not None:
        figures = [asdict(line) | {"reached": line.reached} for line in lines]
        path.write_text(json.dumps({"facts": told, "lines": figures}, indent=2) + "\n", encoding="utf-8")


def _row(line: Line) -> list[str]:
    if line.missing:
        return [line.work, line.against, "", "", "", line.missing, "", line.wanted, ""]
    digits = 0 if line.measured >= 100 else 1 if line.measured >= 1 else 3
    return [
        line.work,
        line.against,
        f"{line.measured:.{digits}f}",
        f"{line.baseline:.{digits}f}",
        line.unit,
        line.result,
        f"± {line.within:.3f}" if line.within else "",
        line.wanted,
        line.verdict,
    ]


def show(facts: Mapping[str, Any], head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the facts on one line, and the rows as a table whose first column is left-aligned."""
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        print("  ".join([line[0].ljust(widths[0]), *cells]))
