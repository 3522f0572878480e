# SPDX-License-Identifier: Apache-2.0
"""The thread that owns an engine: calls, turns, and its end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from inference_bridge.engine.worker import Worker
from inference_bridge.errors import ModelClosedError


class Counter:
    """A loop with a number of steps to do, which records the thread of each step."""

    def __init__(self, work: int, fail: Callable[[], None] = lambda: None) -> None:
        self.work = work
        self.fail = fail
        self.done = threading.Event()
        self.threads: set[str] = set()
        self.closed: list[bool] = []
        self.interrupted = 0

    def turn(self) -> bool:
        self.threads.add(threading.current_thread().name)
        if self.work:
            self.fail()
            self.work -= 1
        if not self.work:
            self.done.set()
        return bool(self.work)

    def interrupt(self) -> None:
        self.interrupted += 1

    def close(self, exiting: bool) -> None:
        self.threads.add(threading.current_thread().name)
        self.closed.append(exiting)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker("test-worker", lasting=True)
    yield made
    made.stop()


def test_calls_run_in_the_workers_thread(worker: Worker) -> None:
    assert worker.call(lambda: threading.current_thread().name) == "test-worker"
    assert worker.call(lambda: worker.call(lambda: 7)) == 7  # from the worker's thread, without queueing


def test_an_exception_of_a_call_reaches_the_caller(worker: Worker) -> None:
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 // 0)
    assert worker.call(lambda: 1) == 1


def test_turns_until_the_work_is_done_and_again_when_woken(worker: Worker) -> None:
    counter = Counter(100)
    worker.add(counter)
    worker.wake()
    assert counter.done.wait(5)
    counter.done.clear()
    counter.work = 3
    worker.wake()
    assert counter.done.wait(5)
    assert counter.threads == {"test-worker"}


def test_loops_take_turns(worker: Worker) -> None:
    endless, short = Counter(10**9), Counter(5)
    worker.add(endless)
    worker.add(short)
    worker.wake()
    assert short.done.wait(5)
    assert worker.call(lambda: 1) == 1


def test_stop_interrupts_and_closes_in_the_thread() -> None:
    worker = Worker("test-worker")
    counter = Counter(10**9)
    worker.add(counter)
    worker.wake()
    worker.stop()
    worker.stop()
    assert counter.interrupted >= 1
    assert counter.closed == [False]
    assert counter.threads == {"test-worker"}
    assert "test-worker" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(ModelClosedError):
        worker.call(lambda: 1)


def test_remove_closes_only_one_loop(worker: Worker) -> None:
    one, other = Counter(10**9), Counter(10**9)
    worker.add(one)
    worker.add(other)
    worker.wake()
    worker.remove(one)
    worker.remove(one)
    assert (one.closed, other.closed) == ([False], [])
    assert one.threads == {"test-worker"}


def test_a_worker_ends_with_its_last_loop() -> None:
    worker, counter = Worker("test-worker"), Counter(10**9)
    worker.add(counter)
    worker.wake()
    worker.remove(counter)
    assert counter.closed == [False]
    assert "test-worker" not in {thread.name for thread in threading.enumerate()}
    worker.remove(counter)
    with pytest.raises(ModelClosedError):
        worker.call(lambda: 1)


def test_a_lasting_worker_survives_its_last_loop() -> None:
    worker, counter = Worker("test-worker", lasting=True), Counter(10**9)
    worker.add(counter)
    worker.remove(counter)
    assert worker.call(lambda: 7) == 7
    worker.stop()


def shared() -> Worker:
    own = Worker("test-shared")
    worker = own.share()
    own.give_back()  # the loop that it was made for
    return worker


def test_a_shared_worker_ends_with_its_last_user() -> None:
    workers = [shared() for _ in range(3)]
    assert len({id(worker) for worker in workers}) == 1
    one, other = Counter(10**9), Counter(10**9)
    workers[0].add(one)
    workers[1].add(other)
    workers[0].wake()
    workers[0].remove(one)
    workers[0].remove(one)
    workers[1].remove(other)
    assert workers[2].call(lambda: 7) == 7
    workers[2].give_back()
    with pytest.raises(ModelClosedError):
        workers[2].call(lambda: 1)
    fresh = shared()
    assert fresh is not workers[0]
    assert fresh.call(lambda: 7) == 7
    fresh.give_back()


FORK = """
import os, sys
from inference_bridge.engine.worker import Worker

def shared():
    own = Worker("test-shared")
    worker = own.share()
    own.give_back()
    return worker

mine = shared()
assert mine.call(os.getpid) == os.getpid()
child = os.fork()
if child == 0:
    own = shared()
    assert own is not mine and own.call(os.getpid) == os.getpid()
    own.give_back()
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), mine.call(lambda: "goes on"))
mine.give_back()
"""


# Windows has no fork, so no child can inherit a worker there.
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")
def test_a_forked_child_has_its_own_shared_worker() -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("7 goes on\n", "")


def test_an_abandoned_call_is_not_made(worker: Worker) -> None:
    busy, made = threading.Event(), threading.Event()
    worker.submit(busy.wait)
    unwanted = worker.submit(made.set)
    assert unwanted.cancel()
    busy.set()
    assert worker.call(made.is_set) is False


def test_stopping_from_within_ends_it_after_the_call() -> None:
    worker = Worker("test-worker")
    worker.call(worker.stop)
    worker._thread.join()
    with pytest.raises(ModelClosedError):
        worker.call(lambda: 1)


def test_a_finalizer_in_the_workers_thread_waits_for_the_end_of_the_turn(worker: Worker) -> None:
    """The garbage collector may finalize a model during a step of the same worker."""
    seen: list[bool] = []

    class Dropped(Counter):
        def turn(self) -> bool:
            worker.remove(self, wait=False)
            seen.append(bool(self.closed))
            self.done.set()
            return False

    loop = Dropped(1)
    worker.add(loop)
    worker.wake()
    assert loop.done.wait(5)
    worker.stop()
    assert seen[0] is False
    assert loop.closed == [False]


def test_a_failing_loop_is_closed_and_its_callers_do_not_hang(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    broken, sound = Counter(1, fail), Counter(3)
    worker.add(broken)
    worker.add(sound)
    worker.wake()
    assert sound.done.wait(5)
    assert worker.call(lambda: broken.closed) == [False]
    assert "a defect" in caplog.text
