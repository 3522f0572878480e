# SPDX-License-Identifier: Apache-2.0
"""The architecture: imports point down, no folder is crowded, and CONTRIBUTING describes the folders that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "inference_bridge"
CONTRACTS = ("layers", "backends", "circles", "adapters")
LINT = Path(sys.executable).with_name("lint-imports")
MOST_FILES = 14
"""Python files in one folder of the package. More than these are divided into packages of one concern each."""

MOST_CONTRACT_FILES = 20
"""Python files at the top level, which is the contract: one file for each group of public names."""


def check(root: Path, contract: str) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the packages under `root` with this project's contracts."""
    return subprocess.run(
        [str(LINT), "--no-cache", "--no-logo", "--contract", contract, str(ROOT / "pyproject.toml")],
        cwd=root,
        env={"PYTHONPATH": f"{root}:{root / 'adapters'}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("contract", CONTRACTS)
def test_layers_hold(contract: str) -> None:
    done = check(ROOT, contract)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("contract", "file", "line"),
    [
        ("layers", "inference_bridge/options.py", "from . import loading"),
        ("layers", "inference_bridge/chat/reader.py", "from ..engine import scheduler"),
        ("layers", "inference_bridge/catalog/stores.py", "from ..backends.http import model"),
        ("backends", "inference_bridge/backends/http/load.py", "from ..llama_server import model as managed"),
        ("circles", "inference_bridge/types.py", "from . import errors, streams"),
        ("adapters", "adapters/llm_inference_bridge/errors.py", "from inference_bridge.engine import worker"),
        ("adapters", "adapters/langchain_inference_bridge/tools.py", "from inference_bridge.chat import markup"),
    ],
)
def test_layers_refuse_a_planted_import(contract: str, file: str, line: str, tmp_path: Path) -> None:
    """Inside a function too."""
    for folder in ("inference_bridge", "adapters"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / file).open("a", encoding="utf-8") as source:
        source.write(f"\n\ndef planted() -> None:\n    {line}\n")
    done = check(tmp_path, contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout


def test_layers_name_every_package() -> None:
    """A new package has a place in the layers."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    placed = set(re.findall(r"inference_bridge\.(\w+)", text.partition("[tool.importlinter]")[2]))
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages <= placed


def test_folders_have_few_files() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert counts.pop(PACKAGE.name) <= MOST_CONTRACT_FILES
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_contributing_lists_the_folders_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^((?:inference_bridge|adapters|tests)/[\w/]*) {2,}", text, re.MULTILINE))
    packages = [PACKAGE, *(path.parent for path in PACKAGE.rglob("__init__.py")), *(ROOT / "adapters").glob("*_bridge")]
    assert {name for name in listed if name != "tests/"} == {f"{path.relative_to(ROOT)}/" for path in packages}
