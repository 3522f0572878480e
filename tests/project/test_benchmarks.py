# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks' figures rest on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import gpu
from benchmarks.report import taken_by_us

ROOT = Path(__file__).resolve().parents[2]

BUSY = "import time\nwhile time.process_time() < 0.3: pass"


def test_what_our_ended_children_took_is_not_taken_by_others() -> None:
    before = taken_by_us()
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    assert round(taken_by_us() - before, 2) >= 0.3  # the system counts hundredths


def test_make_gpu_names_tests_that_exist() -> None:
    assert [path for path in gpu.TESTS if not (ROOT / path).is_file()] == []
