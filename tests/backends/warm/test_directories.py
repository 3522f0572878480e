# SPDX-License-Identifier: Apache-2.0
"""The private directories of servers, also if another user has created a directory of the same name."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import inference_bridge as ib
from inference_bridge.backends.warm import directories

from ...parts.servers.managed import short_directory

OTHER_USER = 65534
ROOM = 36

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory of another user")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for temporary files in which everybody may write, as /tmp."""
    with short_directory() as path:
        path.chmod(0o1777)
        monkeypatch.setattr("tempfile.tempdir", str(path))
        monkeypatch.setattr(directories, "_USUAL_PLACE", str(path))
        yield path


@pytest.fixture
def name(place: Path) -> Path:
    return place / f"inference-bridge-{os.geteuid()}"


def foreign(path: Path) -> None:
    path.mkdir(0o700)
    os.chown(path, OTHER_USER, OTHER_USER)


def open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def readable(path: Path) -> None:
    path.mkdir()
    path.chmod(0o750)


def link(path: Path) -> None:
    (path.parent / "private").mkdir(0o700)
    path.symlink_to("private")


def loose_link(path: Path) -> None:
    path.symlink_to("nowhere")


def file(path: Path) -> None:
    path.touch(0o600)


def test_runtime_directory_is_made_for_this_user_alone(place: Path, name: Path) -> None:
    assert directories.runtime_directory(ROOM) == str(name)
    assert stat.S_IMODE(name.stat().st_mode) == 0o700
    assert directories.runtime_directories(ROOM) == [str(name)]


@pytest.mark.parametrize(
    "taken", [pytest.param(foreign, marks=needs_root), open_to_all, readable, link, loose_link, file]
)
def test_runtime_directory_whose_name_is_taken_gets_a_random_one(
    taken: Callable[[Path], None], place: Path, name: Path
) -> None:
    taken(name)
    made = Path(directories.runtime_directory(ROOM))
    assert made.parent == place
    assert made != name
    found = made.lstat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o700, os.geteuid())
    # The next program finds it, and so does one that lists servers.
    assert directories.runtime_directory(ROOM) == str(made)
    assert directories.runtime_directories(ROOM) == [str(made)]


@needs_root
def test_runtime_directory_is_not_one_that_another_user_made(place: Path, name: Path) -> None:
    foreign(name)
    foreign(name.with_name(f"{name.name}-aaaaaaaa"))
    name.with_name(f"{name.name}-aaaaaaab").symlink_to("/")
    made = Path(directories.runtime_directory(ROOM))
    assert made.stat().st_uid == os.geteuid()
    assert directories.runtime_directories(ROOM) == [str(made)]


@needs_root
def test_runtime_directory_is_never_in_a_directory_of_another_user(
    place: Path, name: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, `sudo -E` keeps the user's XDG_RUNTIME_DIR, whose owner could replace the files in it."""
    runtime = place / "run"
    foreign(runtime)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert directories.runtime_directory(ROOM) == str(name)
    assert list(runtime.iterdir()) == []


def test_runtime_directory_has_room_for_a_socket(
    place: Path, name: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    assert directories.runtime_directory(ROOM) == str(name)
    assert list(deep.iterdir()) == []


def test_runtime_directory_that_can_not_be_made(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "SOCKET_PATH_LIMIT", 10)
    with pytest.raises(ib.ModelLoadError, match="XDG_RUNTIME_DIR"):
        directories.runtime_directory(ROOM)
    assert directories.runtime_directories(ROOM) == []
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nowhere")
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    monkeypatch.setattr(directories, "_USUAL_PLACE", "/tmp")
    monkeypatch.setattr(os, "mkdir", _no_space)
    monkeypatch.setattr(directories, "_is_private", lambda path: False)
    with pytest.raises(ib.ModelLoadError, match="/tmp"):
        directories.runtime_directory(ROOM)
    assert list(place.iterdir()) == []


def _no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")
