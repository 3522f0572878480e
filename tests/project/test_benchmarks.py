# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks' figures rest on."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.report import taken_by_us

BUSY = "import time\nwhile time.process_time() < 0.3: pass"


def test_what_our_ended_children_took_is_not_taken_by_others() -> None:
    before = taken_by_us()
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    assert round(taken_by_us() - before, 2) >= 0.3  # the system counts hundredths
