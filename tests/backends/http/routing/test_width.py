# SPDX-License-Identifier: Apache-2.0
"""The number of operations in flight adapts to the capacity of the server. The clock is simulated."""

from __future__ import annotations

import pytest

from inference_bridge.backends.http.routing.width import MOST, Width


class Simulated:
    """A server that runs `slots` operations concurrently and refuses operations beyond `most`."""

    def __init__(self, width: Width, slots: int, most: int | None = None) -> None:
        self.width, self.slots, self.most = width, slots, most
        self.now = 0.0
        self.running: list[int] = []
        self.limits: list[int] = []
        self.largest_refused = 0

    def run(self, rounds: int, waiting: int = 10_000) -> None:
        """In each round every operation yields a token, and those that ended are replaced."""
        for turn in range(rounds):
            while len(self.running) > self.width.limit:
                self.end()
            while len(self.running) < min(self.width.limit, waiting):
                self.running.append(self.width.began())
                if self.most is not None and len(self.running) > self.most:
                    self.largest_refused = max(self.largest_refused, len(self.running))
                    self.width.refused(self.running[-1])
                    self.end()
                    break
            self.now += max(len(self.running), self.slots) / self.slots
            for _ in self.running:
                self.width.produced(1, self.now)
            if turn % 3 == 0 and self.running:
                self.end()
            self.limits.append(self.width.limit)

    def end(self) -> None:
        self.running.pop()
        self.width.ended()


@pytest.mark.parametrize("slots", [1, 3, 8, 10, 64, 100])
@pytest.mark.parametrize("start", [1, 4, 64])
def test_width_grows_to_the_number_of_slots(slots: int, start: int) -> None:
    server = Simulated(Width(start), slots)
    server.run(300)
    assert max(slots / 1.1, start) <= max(server.limits)
    settled = server.limits[-1]
    assert settled >= min(slots, MOST) / 1.1
    assert settled <= max(2 * slots, start)


def test_width_has_a_largest_value() -> None:
    server = Simulated(Width(4), 100_000)
    server.run(2000)
    assert server.width.limit == MOST


@pytest.mark.parametrize("most", [1, 2, 5, 20, 60])
def test_width_shrinks_after_a_refusal(most: int) -> None:
    server = Simulated(Width(64), 1000, most)
    server.run(400)
    assert all(limit >= 1 for limit in server.limits)
    assert most / 2 <= server.limits[-1] <= most


def test_width_is_halved_once_by_refusals_of_one_burst() -> None:
    width = Width(64)
    sent = [width.began() for _ in range(64)]
    for generation in sent:
        width.refused(generation)
    assert width.limit == 32
    later = width.began()
    width.refused(later)
    assert width.limit == 16


def test_width_of_a_refused_operation_that_was_sent_again_counts_again() -> None:
    width = Width(8)
    again = width.refused(width.began())
    assert width.limit == 1
    assert width.refused(again) == again + 1
    assert width.limit == 1


def test_width_is_measured_only_where_it_is_reached() -> None:
    server = Simulated(Width(8), 1000)
    server.run(500, waiting=7)
    assert set(server.limits) == {8}
    server.run(500)
    assert server.limits[-1] > 8


def test_width_grows_again_when_the_server_takes_more() -> None:
    server = Simulated(Width(4), 4)
    server.run(200)
    assert server.limits[-1] <= 8
    server.slots = 64
    server.run(2000)
    assert max(server.limits[-200:]) >= 58


def test_width_grows_again_after_refusals() -> None:
    server = Simulated(Width(32), 1000, 4)
    server.run(200)
    assert server.limits[-1] <= 4
    server.most = 100
    server.run(3000)
    assert server.limits[-1] >= 50
    assert server.largest_refused > 100


def test_width_ignores_time_that_stands_still() -> None:
    width = Width(1)
    width.began()
    for _ in range(1000):
        width.produced(10, 5.0)
    assert width.limit == 1
