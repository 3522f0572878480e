# SPDX-License-Identifier: Apache-2.0
"""Threads make way for other programs, and come back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inference_bridge import LoadConfig
from inference_bridge.backends.llama_cpp import threads as module
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
from inference_bridge.backends.llama_cpp.threads import FREE_SECONDS, WINDOW, Sample, Threads, measured

STEP = 0.008
"""Seconds of a step without interference."""


class Machine:
    """Cores, and programs that want some of them all the time, each of which gets its share.

    `programs` are the engines; `others` is how many cores programs without an engine want.
    """

    def __init__(self, cores: int, programs: int, most: int | None = None) -> None:
        self.cores, self.others = cores, 0.0
        self.time = self.busy = 0.0
        self.own = [0.0] * programs
        self.active = [True] * programs
        self.threads = [
            Threads(most=most or cores, cores=cores, clock=lambda: self.time, sample=self.sampler(number))
            for number in range(programs)
        ]

    def sampler(self, number: int) -> Any:
        return lambda: Sample(self.time, self.busy, self.own[number])

    def run(self, seconds: float) -> list[int]:
        """Every active engine makes steps for so long; gives the threads that each has then."""
        end = self.time + seconds
        while self.time < end - 1e-9:
            wanted = [threads.now() if on else 0 for threads, on in zip(self.threads, self.active, strict=True)]
            share = min(self.cores / max(sum(wanted) + self.others, 1e-9), 1.0)
            self.time += STEP
            self.busy += (sum(wanted) + self.others) * share * STEP
            for number, count in enumerate(wanted):
                self.own[number] += count * share * STEP
        return [threads.count for threads in self.threads]


def test_threads_equal_cores_on_an_idle_machine() -> None:
    assert Machine(cores=2, programs=1).run(60) == [2]
    assert Machine(cores=64, programs=1, most=32).run(60) == [32]


def test_threads_leave_a_core_that_is_taken_within_a_window() -> None:
    machine = Machine(cores=2, programs=1)
    machine.run(1.0)
    machine.others = 1.0
    assert machine.run(2 * WINDOW + 2 * STEP) == [1]


def test_threads_return_when_the_core_is_free_again_and_not_before() -> None:
    machine = Machine(cores=2, programs=1)
    machine.others = 1.0
    assert machine.run(1.0) == [1]
    machine.others = 0.0
    assert machine.run(FREE_SECONDS - WINDOW) == [1]
    assert machine.run(FREE_SECONDS) == [2]


def test_threads_are_adapted_to_the_load_before_the_first_step() -> None:
    machine = Machine(cores=2, programs=1)
    machine.active = [False]
    machine.others = 1.0
    machine.run(WINDOW)  # while the model is read
    assert machine.threads[0].now() == 1


def test_threads_stay_where_little_else_runs() -> None:
    machine = Machine(cores=2, programs=1)
    machine.others = 0.3
    assert machine.run(10) == [2]


@pytest.mark.parametrize(("cores", "each"), [(2, 1), (4, 2), (16, 8)])
def test_two_programs_settle_at_half_the_cores_each(cores: int, each: int) -> None:
    machine = Machine(cores=cores, programs=2)
    machine.run(1.0)
    for _ in range(50):
        assert machine.run(0.1) == [each, each]


def test_a_program_gets_the_cores_of_one_that_has_ended() -> None:
    machine = Machine(cores=4, programs=2)
    assert machine.run(2.0) == [2, 2]
    machine.active[1] = False
    assert machine.run(1.0)[0] == 4


def test_three_programs_on_two_cores_have_a_thread_each() -> None:
    assert Machine(cores=2, programs=3).run(3.0) == [1, 1, 1]


def test_a_fixed_number_of_threads_is_kept() -> None:
    threads = Threads(3, cores=4, sample=lambda: pytest.fail("nothing is to be measured"))
    assert [threads.now() for _ in range(5)] == [3] * 5


def test_a_program_of_low_priority_uses_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    core = SimpleNamespace(user=1.0, system=2.0, nice=30.0, irq=0.25, softirq=0.25, steal=0.5, idle=99.0)
    for nice, busy in ((False, 4.0), (True, 34.0)):  # the tests may run at low priority themselves
        monkeypatch.setattr(module, "_is_nice", lambda nice=nice: nice)
        assert module._busy(core) == busy


def test_the_measured_processor_time_grows() -> None:
    first = measured()
    while measured().own - first.own < 0.05:
        sum(range(10_000))
    last = measured()
    assert last.at > first.at
    assert last.busy > first.busy


# ---------------------------------------------------------------- in the engine


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 3}, {"extra": {"n_threads": 2, "n_threads_batch": 1}}])
def test_the_engine_keeps_a_number_that_was_set(options: dict[str, Any], demo_model_path: Path) -> None:
    from inference_bridge.backends.llama_cpp.library import lib

    with LlamaCppBackend().load_model(str(demo_model_path), LoadConfig(context_length=256, **options)) as model:
        model.generate("One, two,", max_tokens=4).text()
        pointer = model._engine._context.pointer  # type: ignore[attr-defined]
        found = lib.llama_n_threads(pointer), lib.llama_n_threads_batch(pointer)
    extra = options.get("extra", {})
    assert found == (extra.get("n_threads", options.get("threads")), extra.get("n_threads_batch", found[0]))


def test_a_change_of_threads_between_steps_does_not_change_the_text(
    demo_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def now(self: Threads) -> int:
        counts.append(1 + len(counts) % 3)
        return counts[-1]

    def text() -> list[Any]:
        config = LoadConfig(context_length=256, parallel_slots=1, deterministic=True)
        with LlamaCppBackend().load_model(str(demo_model_path), config) as model:
            tokens = list(model.generate("The quick brown fox", max_tokens=12, logprobs=1))
            if counts:
                from inference_bridge.backends.llama_cpp.library import lib

                context = model._engine._context.pointer  # type: ignore[attr-defined]
                assert lib.llama_n_threads(context) == counts[-1]
            return tokens

    expected = text()
    monkeypatch.setattr(Threads, "now", now)
    assert text() == expected
    assert set(counts) == {1, 2, 3}
