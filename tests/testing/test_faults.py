# SPDX-License-Identifier: Apache-2.0
"""The contract suite finds faults: each of several dozen broken models fails the tests that are meant for its fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..parts.faulty.models import Sound
from ..parts.faulty.suites import FAULTS, HANGING

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The outcome of each test, by class of the model."""
    report = tmp_path_factory.mktemp("report") / "report.json"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/parts/faulty/suites.py",
        "-q",
        "--tb=short",
        "--timeout=30",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, "-p", "inference_bridge.testing.plugin", "--contract-report", str(report)],
        cwd=ROOT,
        env=os.environ
        | {
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_PLUGINS": "pytest_asyncio.plugin,pytest_timeout",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")]),
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    return {suite["suite"].rpartition("::")[2]: suite for suite in json.loads(report.read_text())["suites"]}


def test_the_correct_model_satisfies_the_contract(outcomes: dict[str, dict[str, Any]]) -> None:
    tests = outcomes["TestSound"]["tests"]
    assert len(tests) > 400
    assert {name: outcome for name, outcome in tests.items() if outcome != "passed"} == {}
    assert set(outcomes["TestSound"]["behaviours"]) == {str(number) for number in range(1, 12)}


@pytest.mark.parametrize("model", FAULTS, ids=lambda model: model.__name__)
def test_a_fault_is_caught(model: type, outcomes: dict[str, dict[str, Any]]) -> None:
    tests = outcomes[f"Test{model.__name__}"]["tests"]
    for name in FAULTS[model][1].split():
        named = [outcome for test, outcome in tests.items() if test == name or test.partition("[")[0] == name]
        assert named, f"there is no {name}"
        assert set(named) == {"failed"}


@pytest.mark.parametrize("model", [model for model in FAULTS if model not in HANGING], ids=lambda model: model.__name__)
def test_a_faulty_model_answers(model: type[Sound]) -> None:
    """One that merely fell over would be caught by anything."""
    assert len(model().generate("Humpty Dumpty", max_tokens=20).text()) > 10
