# SPDX-License-Identifier: Apache-2.0
"""docs/release_notes.py, and CHANGELOG.md in the form that it reads."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from datetime import date
from itertools import pairwise
from pathlib import Path

import pytest

import inference_bridge

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "release_notes.py"

CHANGELOG = """# Changelog

How it is kept.

## Unreleased

### Added

- A thing to come.

## 1.10.0 - 2026-02-28

### Fixed

- A thing,
  mended.

### Removed

- Another.

## 1.9.0 - 2025-12-31

- The first.
"""


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "docs" / SCRIPT.name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The files that the script reads, and the script: version 1.10.0, released."""
    for name in ("docs", "inference_bridge"):
        (tmp_path / name).mkdir()
    shutil.copy(SCRIPT, tmp_path / "docs")
    (tmp_path / "inference_bridge" / "__init__.py").write_text('"""A package."""\n\n__version__ = "1.10.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "printed"),
    [
        (["Unreleased"], "### Added\n\n- A thing to come.\n"),
        (["1.10.0"], "### Fixed\n\n- A thing,\n  mended.\n\n### Removed\n\n- Another.\n"),
        (["--tag", "v1.10.0"], "### Fixed\n\n- A thing,\n  mended.\n\n### Removed\n\n- Another.\n"),
        (["1.9.0"], "- The first.\n"),
    ],
)
def test_the_notes_of_a_version(project: Path, asked: list[str], printed: str) -> None:
    done = run(project, *asked)
    assert (done.stdout, done.stderr, done.returncode) == (printed, "", 0)


@pytest.mark.parametrize(
    ("asked", "change", "said"),
    [
        ("1.1", ("", ""), "CHANGELOG.md: it has no section of 1.1"),
        ("1.10.0", (" - 2026-02-28", ""), "CHANGELOG.md: its section of 1.10.0 has no date"),
        ("1.10.0", ("02-28", "02-29"), "CHANGELOG.md: its heading '## 1.10.0 - 2026-02-29' names a day that no"),
        ("1.10.0", ("Unreleased", "Unreleased: 2.0.0"), "CHANGELOG.md: its heading '## Unreleased: 2.0.0' is neither"),
        ("1.9.0", ("1.10.0", "1.9.0"), "CHANGELOG.md: it has two sections of 1.9.0"),
        ("1.9.0", ("- The first.", "### Added\n"), "CHANGELOG.md: its section of 1.9.0 is empty"),
        ("1.9.0", ("\n- The first.\n", ""), "CHANGELOG.md: its section of 1.9.0 is empty"),
        (
            "--tag=v1.9.0",
            ("", ""),
            "inference_bridge/__init__.py: its __version__ is 1.10.0, of which the tag is v1.10.0",
        ),
        (
            "--tag=1.10.0",
            ("", ""),
            "inference_bridge/__init__.py: its __version__ is 1.10.0, of which the tag is v1.10.0",
        ),
        ("--tag=v1.10.0", ("1.10.0 - 2026-02-28", "2.0.0 - 2026-02-28"), "CHANGELOG.md: it has no section of 1.10.0"),
    ],
)
def test_inconsistent_versions_are_reported(project: Path, asked: str, change: tuple[str, str], said: str) -> None:
    (project / "CHANGELOG.md").write_text(CHANGELOG.replace(*change))
    done = run(project, asked)
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.startswith(said)


def test_a_package_without_a_version(project: Path) -> None:
    (project / "inference_bridge" / "__init__.py").write_text("")
    done = run(project, "--tag", "v1.10.0")
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr == "inference_bridge/__init__.py: it has no line '__version__ = \"X.Y.Z\"'\n"


def test_the_changelog_is_in_this_form() -> None:
    """The newest first, every release with its date; and the package's version is the newest, or the next."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = runpy.run_path(str(SCRIPT))["sections"](changelog)
    assert "Unreleased" not in list(found)[1:]
    released = [(_numbers(version), section.date) for version, section in found.items() if version != "Unreleased"]
    assert all(isinstance(day, date) for _, day in released)
    assert all(newer > older and day >= before for (newer, day), (older, before) in pairwise(released))
    assert _numbers(inference_bridge.__version__) >= max((version for version, _ in released), default=())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
