# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from inference_bridge import Attachment
from inference_bridge.chat.attachment_files import MAX_ATTACHMENT_BYTES, read_file
from inference_bridge.chat.attachments import content


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"ab" * 1_500_000)
    assert read_file(str(tmp_path / "x")) == b"ab" * 1_500_000
    (tmp_path / "link").symlink_to(tmp_path / "x")
    assert content(Attachment("image/png", path=str(tmp_path / "link"))) == b"ab" * 1_500_000


def test_a_file_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").write_bytes(b"home")
    assert read_file("~/x") == b"home"


def test_paths_of_other_kinds_than_regular_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        for name in ("fifo", "directory", "link", "socket"):
            with pytest.raises(ValueError, match=f"{name}.* is not a regular file"):
                content(Attachment("image/png", path=str(tmp_path / name)))
    with pytest.raises(ValueError, match="/dev/zero"):
        read_file("/dev/zero")
    with pytest.raises(ValueError, match="can't be read"):
        read_file(str(tmp_path / "gone"))


def test_a_path_that_becomes_a_pipe_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"x")
    regular = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda path: regular)  # the state of the file at the check
    refused: list[ValueError] = []

    def read() -> None:
        with pytest.raises(ValueError, match="regular") as caught:
            read_file(str(tmp_path / "fifo"))
        refused.append(caught.value)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(30)
    assert refused


def test_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_file(str(path), 5) == b"12345"
    with pytest.raises(ValueError, match="larger than"):
        read_file(str(path), 4)
    with open(path, "wb") as sparse:
        sparse.truncate(MAX_ATTACHMENT_BYTES + 1)
    with pytest.raises(ValueError, match="100 MiB"):
        content(Attachment("image/png", path=str(path)))


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs /proc, whose files state a size of 0")
def test_a_file_without_a_size_is_read_up_to_the_limit() -> None:
    assert b"\n" in read_file("/proc/self/maps")
    with pytest.raises(ValueError, match="larger than"):
        read_file("/proc/self/maps", 10)
