# SPDX-License-Identifier: Apache-2.0
"""The gate of a native object: use and freeing never meet."""

from __future__ import annotations

import os
import threading

import pytest

from inference_bridge._concurrency.gate import Gate
from inference_bridge.errors import ModelClosedError


def test_an_unused_object_is_freed_immediately_and_once() -> None:
    gate, freed = Gate(), []
    gate.close(lambda: freed.append(1))
    gate.close(lambda: freed.append(2))
    gate.wait()
    assert freed == [1]
    assert gate.closed
    with pytest.raises(ModelClosedError), gate:
        pass


def test_the_last_user_frees_the_object() -> None:
    gate, freed = Gate(), []
    with gate:
        with gate:  # a thread may enter again
            gate.close(lambda: freed.append(threading.current_thread().name))
            assert freed == []
            with pytest.raises(ModelClosedError):
                gate.check()
        assert freed == []
    assert freed == [threading.current_thread().name]


def test_an_error_inside_the_gate_leaves_the_gate() -> None:
    gate, freed = Gate(), []
    with pytest.raises(ZeroDivisionError), gate:
        _ = 1 // 0
    gate.close(lambda: freed.append(1))
    assert freed == [1]


def test_a_freed_object_is_never_used() -> None:
    """Threads use an object until they are refused: none of them sees it freed."""
    for _ in range(50):
        gate, alive = Gate(), [True]
        wrong: list[str] = []

        def use(gate: Gate = gate, alive: list[bool] = alive, wrong: list[str] = wrong) -> None:
            try:
                while True:
                    with gate:
                        if not alive:
                            wrong.append("used after it was freed")
            except ModelClosedError:
                pass

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        gate.close(alive.clear)
        gate.wait()
        for thread in threads:
            thread.join()
        assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_is_refused() -> None:
    gate = Gate()
    with gate:
        child = os.fork()
        if child == 0:
            try:
                with gate:
                    os._exit(1)
            except ModelClosedError:
                gate.wait()
                os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
