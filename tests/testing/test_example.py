# SPDX-License-Identifier: Apache-2.0
"""The backend under examples/ is a short package, is found by name, and satisfies the contract, as its guide states."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "markov_backend"
BACKEND = EXAMPLE / "inference_bridge_markov" / "__init__.py"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which pip installed the example."""
    target = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(EXAMPLE)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return target


def _environment(installed: Path) -> dict[str, str]:
    path = os.pathsep.join([str(installed), str(ROOT), str(ROOT / "adapters")])
    return os.environ | {"PYTHONPATH": path, "INFERENCE_BRIDGE_LOAD_PLUGINS": "inference-bridge-markov"}


def test_the_example_is_loaded_by_name(installed: Path) -> None:
    source = f"markov:{EXAMPLE / 'rhymes.txt'}"
    program = (
        "import sys; from inference_bridge import load_model, names;"
        "assert 'markov' in names() and 'inference_bridge_markov.chain' not in sys.modules;"
        f"model = load_model({source!r});"
        "print(model.generate('Mary had', max_tokens=14).text())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=_environment(installed),
        cwd=installed,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == (" a little lamb\n", "")


def test_the_example_satisfies_the_contract(installed: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    asked = pytestconfig.getoption("--contract-report")  # of this run: `make table` has the example's beside it
    report = Path(asked).absolute().with_name("example.json") if asked else tmp_path / "report.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "inference_bridge.testing.plugin"]
    done = subprocess.run(
        [*command, "-c", os.devnull, f"--rootdir={EXAMPLE}", str(EXAMPLE / "tests"), "--contract-report", str(report)],
        env=_environment(installed) | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    (suite,) = json.loads(report.read_text())["suites"]
    assert set(suite["tests"].values()) == {"passed"}
    assert len(suite["tests"]) > 400


def test_the_example_is_short() -> None:
    assert len(BACKEND.read_text(encoding="utf-8").splitlines()) <= 60


def test_the_guide_shows_it_whole_and_as_it_is() -> None:
    guide = (ROOT / "docs" / "writing-a-backend.md").read_text(encoding="utf-8")
    shown = "".join(re.findall(r"^```py\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL))
    lines = [line for line in BACKEND.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert [line for line in shown.splitlines() if line.strip()] == lines
