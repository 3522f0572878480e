# SPDX-License-Identifier: Apache-2.0
"""Work in threads, when the system cannot start one."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from inference_bridge._concurrency import background


def test_no_work_waits_for_a_thread_that_could_not_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls of `submit` at the same time, whose threads both fail: a real system fails too rarely for a test."""
    others: list[Future[int]] = []

    class Failing(threading.Thread):
        def start(self) -> None:
            if not others:  # the second call, between the first one's count of threads and its failure
                others.append(Future())  # so that the second call does not come here
                others[0] = background.submit(lambda: 2)
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading, "Thread", Failing)
    with pytest.raises(RuntimeError):
        background.submit(lambda: 1)
    with pytest.raises(RuntimeError):
        others[0].result(timeout=0)
    monkeypatch.undo()
    assert background.submit(lambda: 3).result(timeout=60) == 3
