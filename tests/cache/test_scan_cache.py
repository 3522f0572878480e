# SPDX-License-Identifier: Apache-2.0
"""The cache of discovery: it is never stale, and untrusted or damaged files are ignored."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inference_bridge._cache import scan_cache
from inference_bridge.catalog import search as searching
from inference_bridge.catalog.discovery import discover
from inference_bridge.catalog.found import DiscoveredModel

from ..parts.models.gguf_files import write_checkpoint, write_model, write_projector

STEP = 0.02
"""Seconds within which a file system may not tell two changes apart."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """New files are not cached by default, and these tests write new files."""
    monkeypatch.setattr(scan_cache, "QUIET_SECONDS", STEP / 2)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Models of every kind, with whatever else a search depends on."""
    place = tmp_path / "models"
    write_model(place / "one.gguf")
    write_model(place / "deep" / "er" / "two.gguf")
    write_checkpoint(place / "mlx")
    write_model(tmp_path / "elsewhere" / "three.gguf")
    (place / "linked").symlink_to(tmp_path / "elsewhere")
    (place / "nowhere").symlink_to(tmp_path / "not-yet")
    (place / "nothing.gguf").symlink_to(tmp_path / "not-yet.gguf")
    write_model(place / "models--a--b" / "snapshots" / "1111" / "four.gguf")
    write_model(place / "models--a--b" / "snapshots" / "2222" / "four.gguf")
    (place / "models--a--b" / "refs").mkdir()
    (place / "models--a--b" / "refs" / "main").write_text("1111")
    digest = "a" * 64
    write_model(place / "ollama" / "blobs" / f"sha256-{digest}")
    tag = place / "ollama" / "manifests" / "registry" / "library" / "five" / "latest"
    tag.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    tag.write_text(json.dumps({"layers": [layer]}))
    return place


def search(place: Path) -> tuple[list[DiscoveredModel], bool]:
    """The models found, and whether they come from the cache."""
    walked = []
    walk = searching._walk

    def walking(*arguments: object) -> object:
        walked.append(arguments)
        return walk(*arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "_walk", walking)
        return discover(place), not walked


def forget() -> None:
    shutil.rmtree(scan_cache.directory(), ignore_errors=True)


def write_in_place(path: Path) -> None:
    """Other contents of the same length, and a time stamp that was set back."""
    before = path.stat()
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.write(b"GGUX" + data[4:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a new file": lambda place: write_model(place / "new.gguf"),
    "a new file, deep below": lambda place: write_model(place / "deep" / "er" / "new.gguf"),
    "a new directory": lambda place: write_model(place / "fresh" / "new.gguf"),
    "a file goes": lambda place: (place / "one.gguf").unlink(),
    "a file is renamed": lambda place: (place / "one.gguf").rename(place / "other.gguf"),
    "a file is longer": lambda place: write_model(place / "one.gguf", {"llama.context_length": 77, "x.y": "z" * 99}),
    "a file is cut": lambda place: write_model(place / "one.gguf", cut=10),
    "other contents of one length": lambda place: write_in_place(place / "one.gguf"),
    "a file is replaced": lambda place: shutil.copy(place / "mlx" / "config.json", place / "one.gguf"),
    "a projector": lambda place: write_projector(place / "mmproj.gguf", vision__projection_dim=64),
    "a checkpoint's settings": lambda place: (place / "mlx" / "config.json").write_text("{"),
    "a directory goes": lambda place: shutil.rmtree(place / "deep"),
    "behind a link": lambda place: write_model(place.parent / "elsewhere" / "new.gguf"),
    "a link's directory comes": lambda place: write_model(place.parent / "not-yet" / "new.gguf"),
    "a link's file comes": lambda place: write_model(place.parent / "not-yet.gguf"),
    "another main revision": lambda place: (place / "models--a--b" / "refs" / "main").write_text("2222"),
    "another tag": lambda place: shutil.copytree(
        place / "ollama" / "manifests" / "registry" / "library" / "five",
        place / "ollama" / "manifests" / "registry" / "library" / "six",
    ),
    "a tag says something else": lambda place: (
        place / "ollama" / "manifests" / "registry" / "library" / "five" / "latest"
    ).write_text("{}"),
    "a blob goes": lambda place: (place / "ollama" / "blobs" / f"sha256-{'a' * 64}").unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_cache_is_used_until_a_file_changes(models: Path, change: Callable[[Path], object]) -> None:
    time.sleep(STEP)
    found, remembered = search(models)
    assert not remembered
    assert len(found) == 8
    assert search(models) == (found, True)
    time.sleep(STEP)
    change(models)
    time.sleep(STEP)
    after, remembered = search(models)
    assert not remembered
    forget()
    assert search(models) == (after, False)
    assert after != found


def test_only_changed_files_are_read_again(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time.sleep(STEP)
    found = discover(models)
    time.sleep(STEP)
    write_model(models / "new.gguf")
    read: list[str] = []
    original = searching._read_gguf

    def reading(path: str, size: int) -> object:
        read.append(path)
        return original(path, size)

    monkeypatch.setattr(searching, "_read_gguf", reading)
    assert len(discover(models)) == len(found) + 1
    assert [path for path in read if os.path.exists(path)] == [str(models / "new.gguf")]


def test_relative_names_in_two_directories_are_different_models(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "other" / "models" / "six.gguf")
    time.sleep(STEP)
    for place, count in ((tmp_path, 8), (tmp_path / "other", 1)):
        monkeypatch.chdir(place)
        assert [len(discover("models")) for _ in range(2)] == [count, count]


def test_recently_changed_files_are_not_cached(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_cache, "QUIET_SECONDS", 3600)
    found, _ = search(models)
    assert search(models) == (found, False)


def test_an_unreadable_directory_is_reported_at_each_search(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        discover(models, models / "missing")
        assert "no models are looked for in" in caplog.text
        caplog.clear()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"paths": 1})),
        lambda path: path.write_text(json.dumps({"about": json.loads(path.read_text())["about"]})),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.chmod(0o666),  # anybody may have written it
        lambda path: path.chmod(0),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_damaged_or_foreign_cache_file_is_ignored(models: Path, damage: Callable[[Path], object]) -> None:
    time.sleep(STEP)
    found = discover(models)
    for path in Path(scan_cache.directory()).glob("models-*"):
        damage(path)
    assert search(models)[0] == found


def test_the_cache_is_private_and_its_size_is_limited(models: Path) -> None:
    for number in range(40):
        (models / str(number)).mkdir()
    time.sleep(STEP)
    for number in range(40):
        discover(models / str(number))
    place = Path(scan_cache.directory())
    assert place.stat().st_mode & 0o777 == 0o700
    files = list(place.iterdir())
    assert len(files) <= 2 * scan_cache.MAX_SEARCHES
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_discovery_works_without_a_cache_directory(models: Path, home: Path) -> None:
    (home / ".cache").write_text("a file, no directory")
    assert len(discover(models)) == len(discover(models)) == 8


def test_concurrent_searches_and_changes_find_all_models(models: Path) -> None:
    """Threads here, beside processes that write the same files."""
    code = f"from inference_bridge import discover\nfor _ in range(20): assert len(discover({str(models)!r})) >= 8"
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    try:
        for number in range(5):
            write_model(models / f"new{number}.gguf")
            with ThreadPoolExecutor(4) as pool:
                counts = set(pool.map(lambda _: len(discover(models)), range(8)))
            assert counts == {9 + number}
    finally:
        for process in others:
            assert process.wait(timeout=60) == 0
