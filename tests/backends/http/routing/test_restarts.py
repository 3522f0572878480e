# SPDX-License-Identifier: Apache-2.0
"""Two real llama-servers under load, of which one is killed, stopped, and started again."""

from __future__ import annotations

from pathlib import Path

import pytest

from ....parts.models.tiny_gguf import write_llama
from ....parts.servers.restarts import killed, stopped

pytestmark = pytest.mark.slow

STREAMS = 8
SILENCE = 8
"""Seconds until a server that hangs is left: far more than the tiny model takes to begin."""


def test_no_answer_that_has_not_begun_is_lost_where_a_server_is_killed() -> None:
    load = killed(STREAMS)
    assert load.lost == []
    assert len(load.broken) <= 2 * STREAMS, "only what had begun when a server was killed"


def test_no_answer_is_lost_where_a_server_hangs(tmp_path: Path) -> None:
    """It holds its connections, and answers nothing. What had begun stalls; what had not begins elsewhere."""
    load = stopped(STREAMS, SILENCE, write_llama(tmp_path / "tiny.gguf", 512))
    assert load.lost == []
    assert len(load.broken) <= STREAMS
