# SPDX-License-Identifier: Apache-2.0
"""The directories of installed packages that ship a GGUF file, and how they are remembered."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import pytest

from inference_bridge._cache import installed, scan_cache

from ..parts.models.gguf_files import write_model

STEP = 0.02
"""Seconds within which a file system may not tell two changes apart."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """New files are not cached by default, and these tests write new files."""
    monkeypatch.setattr(scan_cache, "QUIET_SECONDS", STEP / 2)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory of sys.path."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def install(site: Path, name: str, model: str) -> Path:
    info = site / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    write_model(site / model)
    (info / "RECORD").write_text(f"{model},,\n{name}/__init__.py,,\n")
    time.sleep(STEP)
    return info


def test_directories_are_remembered_until_something_is_installed_or_removed(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "one", "one/model.gguf")
    assert installed.model_directories() == [str(site / "one")]
    with monkeypatch.context() as patch:
        patch.setattr(installed, "_read", lambda path: pytest.fail(f"{path} is read"))
        assert installed.model_directories() == [str(site / "one")]
    info = install(site, "two", "two/model.gguf")
    assert installed.model_directories() == [str(site / "one"), str(site / "two")]
    shutil.rmtree(info)
    assert installed.model_directories() == [str(site / "one")]


def test_directories_of_files_beside_the_packages_and_of_unreadable_places_are_left_out(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "archive.zip").write_bytes(b"")
    monkeypatch.setattr(sys, "path", [str(site), str(site / "archive.zip"), str(site / "none")])
    install(site, "beside", "model.gguf")
    (install(site, "plain", "plain/model.txt") / "RECORD").unlink()
    assert installed.model_directories() == []
