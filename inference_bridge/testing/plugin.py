# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin: `pytest --contract-report FILE` writes the results of the suites of a run as JSON.

`suites` has an object for each test class: `suite` (its node id), `whole` (whether the class has all groups of tests),
`backend`, `model_type`, `capabilities`, `options`, `parallel`; `behaviours`, with the numbers of passed, failed and
skipped tests for each behaviour; and `tests`, with the outcome of each test.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..model import TextModel

_KEY: pytest.StashKey[Report] = pytest.StashKey()
_RANK = {"passed": 0, "skipped": 1, "failed": 2}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("inference-bridge")
    group.addoption(
        "--contract-report", metavar="FILE", help="write the results of the inference-bridge contract suites as JSON"
    )


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--contract-report")
    if path:
        config.stash[_KEY] = Report(Path(path))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    outcome = yield
    report = item.config.stash.get(_KEY, None)
    if report is not None and isinstance(item, pytest.Function):
        report.add(item, outcome.outcome)
    return outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    report = session.config.stash.get(_KEY, None)
    if report is not None:
        report.write()


class Report:
    """Collects outcomes by suite. A test's outcome is the worst of its set-up, call and tear-down."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._suites: dict[str, dict[str, Any]] = {}

    def add(self, item: pytest.Function, outcome: str) -> None:
        base = sys.modules.get("inference_bridge.testing.base")  # not imported: this run has no suite
        suite = item.cls
        if base is None or suite is None or not issubclass(suite, base.Contract):
            return
        assert item.parent is not None
        entry = self._suites.setdefault(item.parent.nodeid, _new(item.parent.nodeid, suite))
        model: Any = item.funcargs.get("model")
        if model is not None and "backend" not in entry:
            entry.update(_described(model))
        tests = entry["tests"]
        known = tests.get(item.name, "passed")
        tests[item.name] = max(known, outcome, key=_RANK.__getitem__)
        home = next(cls for cls in suite.__mro__ if item.originalname in vars(cls))
        for behaviour in getattr(home, "behaviours", ()):
            entry["behaviours"].setdefault(str(behaviour), []).append(item.name)

    def write(self) -> None:
        suites = []
        for entry in self._suites.values():
            behaviours = {}
            for number, names in sorted(entry["behaviours"].items(), key=lambda pair: int(pair[0])):
                outcomes = [entry["tests"][name] for name in dict.fromkeys(names)]
                behaviours[number] = {outcome: outcomes.count(outcome) for outcome in _RANK}
            suites.append(entry | {"behaviours": behaviours})
        self._path.write_text(json.dumps({"suites": suites}, indent=1) + "\n", encoding="utf-8")


def _new(name: str, suite: type) -> dict[str, Any]:
    module = sys.modules.get("inference_bridge.testing.suite")
    whole = module is not None and issubclass(suite, module.ContractSuite)
    return {"suite": name, "whole": whole, "behaviours": {}, "tests": {}}


def _described(model: TextModel) -> dict[str, Any]:
    return {
        "backend": model.backend,
        "model_type": model.model_type,
        "capabilities": sorted(model.capabilities),
        "options": sorted(model.options),
        "parallel": model.parallel,
    }
