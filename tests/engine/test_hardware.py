# SPDX-License-Identifier: Apache-2.0
"""Cores and memory, on this machine and in recorded containers."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from inference_bridge.engine.hardware import available_memory, physical_cores, process_memory

GIB = 1 << 30


def record(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16 if logical else 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "350000 100000"}, 3),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "3200000 100000"}, 8),
        ({"cpu.max": "nonsense"}, 8),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_cores_within_the_containers_quota(files: dict[str, str], cores: int, tmp_path: Path) -> None:
    assert physical_cores(record(tmp_path, files)) == cores


@pytest.mark.usefixtures("eight_cores")
def test_cores_within_the_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert physical_cores(tmp_path) == 2


@pytest.mark.usefixtures("eight_cores")
def test_cores_on_a_system_without_cpu_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert physical_cores(tmp_path) == 8


def test_cores_of_this_machine() -> None:
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 64 * GIB),
        ({"memory.max": "max", "memory.current": "1", "memory.stat": "anon 1"}, 64 * GIB),
        ({"memory.max": str(8 * GIB), "memory.current": str(3 * GIB), "memory.stat": "anon 1"}, 5 * GIB),
        (
            {
                "memory.max": str(8 * GIB),
                "memory.current": str(7 * GIB),
                "memory.stat": f"anon {3 * GIB}\nactive_file {GIB}\ninactive_file {3 * GIB}",
            },
            5 * GIB,
        ),
        (
            {
                "memory/memory.limit_in_bytes": str(4 * GIB),
                "memory/memory.usage_in_bytes": str(GIB),
                "memory/memory.stat": "inactive_file 0",
            },
            3 * GIB,
        ),
    ],
)
def test_memory_within_the_containers_limit(
    files: dict[str, str], free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 64 * GIB}))
    assert available_memory(record(tmp_path, files)) == free


def test_memory_of_this_process() -> None:
    before = process_memory()
    ballast = bytearray(os.urandom(64 << 20))
    assert process_memory() - before > 48 << 20
    del ballast
