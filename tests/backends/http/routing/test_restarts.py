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


def test_answers_that_have_not_begun_survive_the_kill_of_a_server() -> None:
    load = killed(STREAMS)
    assert load.lost == []
    assert len(load.broken) <= 2 * STREAMS, "only what had begun when a server was killed"


def test_answers_survive_a_server_that_hangs(tmp_path: Path) -> None:
    """Answers that had begun stall. Others begin on another server."""
    load = stopped(STREAMS, SILENCE, write_llama(tmp_path / "tiny.gguf", 512))
    assert load.lost == []
    assert len(load.broken) <= STREAMS
