# SPDX-License-Identifier: Apache-2.0
"""What installed distributions say: as importlib.metadata reads it, and never what is no longer so."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import time
import zipfile
from pathlib import Path

import pytest

from inference_bridge._cache import installed, scan_cache
from inference_bridge._cache.installed import Plugin
from inference_bridge._cache.scan_cache import Memory

from ..parts.models.gguf_files import write_model

STEP = 0.02
"""Seconds within which a file system may not tell two changes apart."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of these tests are new, and what is new is not remembered."""
    monkeypatch.setattr(scan_cache, "QUIET_SECONDS", STEP / 2)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory of sys.path."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def install(site: Path, name: str, *, value: str = "", gguf: str = "", kind: str = "dist-info") -> Path:
    info = site / f"{name}-1.{kind}"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    if value:
        (info / "entry_points.txt").write_text(f"[console_scripts]\nx = y\n[inference_bridge]\nmine = {value}\n")
    if gguf:
        write_model(site / gguf)
        (info / "RECORD").write_text(f"{gguf},,\n{name}/__init__.py,,\n")
    time.sleep(STEP)
    return info


def remembered(monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether what is installed is known without a look at the distributions."""
    looked: list[str] = []
    with monkeypatch.context() as patch:
        read = installed._read_all

        def reading(root: str, _scan_cache: Memory) -> installed._Found:
            looked.append(root)
            return read(root, _scan_cache)

        patch.setattr(installed, "_read_all", reading)
        installed.plugins()
    return not looked


def test_it_finds_what_importlib_finds() -> None:
    """In this environment, which has the plugins of this library."""
    expected = {
        (installed.normal(entry.dist.name), entry.name, entry.value)
        for entry in importlib.metadata.entry_points(group="inference_bridge")
        if entry.dist is not None
    }
    assert set(installed.plugins()) == expected
    assert ("inference-bridge", "llm", "llm_inference_bridge.backend") in expected


def test_packages_are_remembered_until_something_is_installed_or_removed(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "one", gguf="one/model.gguf")
    assert installed.model_directories() == [str(site / "one")]
    assert remembered(monkeypatch)
    assert installed.model_directories() == [str(site / "one")]
    install(site, "two", gguf="two/model.gguf", value="two:plugin")
    assert not remembered(monkeypatch)
    assert installed.model_directories() == [str(site / "one"), str(site / "two")]
    assert installed.plugins() == [Plugin("two", "mine", "two:plugin")]
    shutil.rmtree(site / "two-1.dist-info")
    assert installed.plugins() == []
    assert installed.model_directories() == [str(site / "one")]


def test_a_source_tree_that_is_installed_again_is_read_again(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = install(site, "tree", value="before", kind="egg-info")
    assert installed.plugins() == [Plugin("tree", "mine", "before")]
    assert remembered(monkeypatch)
    (info / "entry_points.txt").write_text("[inference_bridge]\nmine = after\n")
    assert installed.plugins() == [Plugin("tree", "mine", "after")]


def test_the_first_installation_of_a_distribution_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "first", "My_Plugin", value="first")
    install(tmp_path / "first", "shadow")
    install(tmp_path / "second", "my.plugin", value="second")
    install(tmp_path / "second", "shadow", value="shadowed")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second")])
    assert installed.plugins() == [Plugin("my-plugin", "mine", "first")]


def test_a_damaged_distribution_takes_no_other_down(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    install(site, "sound", value="sound")
    broken = install(site, "broken", value="x")
    (broken / "entry_points.txt").write_bytes(b"[inference_bridge]\nmine = \xff\xfe\n")
    for _ in range(2):
        caplog.clear()
        assert installed.plugins() == [Plugin("sound", "mine", "sound")]
        assert str(broken / "entry_points.txt") in caplog.text


def test_plugins_in_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("zipped-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: zipped\nVersion: 1\n")
        file.writestr("zipped-1.dist-info/entry_points.txt", "[inference_bridge]\nmine = zipped_plugin\n")
    monkeypatch.setattr(sys, "path", [str(archive), str(tmp_path / "not-there")])
    assert installed.plugins() == [Plugin("zipped", "mine", "zipped_plugin")]


@pytest.mark.parametrize("value", ["os.path", "os.path:join", "os:path.join", "os.path : join [extra]"])
def test_what_an_entry_point_refers_to(value: str) -> None:
    theirs = importlib.metadata.EntryPoint("mine", value, "inference_bridge").load()
    assert Plugin("some", "mine", value).load() is theirs
