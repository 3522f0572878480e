# SPDX-License-Identifier: Apache-2.0
"""Helpers for tests of managed servers: short directories, stand-ins for llama-server, running processes."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from inference_bridge.backends.llama_server import xllamacpp_program

REAL = f'exec "{sys.executable}" -P "{xllamacpp_program.__file__}" "$@"'
"""A shell's line that becomes the real server."""

TIMEOUT = 20.0
"""Seconds until a test stops waiting for something that should happen immediately."""


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory in which the paths of sockets have room: pytest's own are too deep for that."""
    path = Path(tempfile.mkdtemp(prefix="ib-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def wait_gone(*pids: int | None) -> None:
    for pid in pids:
        assert pid is not None
        wait_until(lambda pid=pid: not runs(pid))  # type: ignore[misc]


def command(pid: int | None) -> list[str]:
    line: list[str] = psutil.Process(pid).cmdline()
    return line
