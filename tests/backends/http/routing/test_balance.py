# SPDX-License-Identifier: Apache-2.0
"""The choice among servers: least busy, without the ones that failed. The time is the test's own."""

from __future__ import annotations

import pytest

from inference_bridge.backends.http.routing.balance import FIRST_PAUSE, LONGEST_PAUSE, Balance


def test_the_least_busy_server_is_chosen() -> None:
    balance = Balance([2, 2, 2])
    assert [balance.choose(0.0) for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    balance.ended(1)
    assert balance.choose(0.0) == 1


def test_a_server_with_more_slots_gets_more() -> None:
    balance = Balance([1, 3])
    chosen = [balance.choose(0.0) for _ in range(8)]
    assert chosen.count(0) == 2
    assert chosen.count(1) == 6


def test_servers_that_are_equally_busy_take_turns() -> None:
    balance = Balance([4, 4])
    for expected in (0, 1, 0, 1):
        assert balance.choose(0.0) == expected
        balance.ended(expected)


def test_a_preferred_server_is_chosen_unless_it_is_much_busier() -> None:
    balance = Balance([4, 4])
    assert [balance.choose(0.0, preferred=1) for _ in range(3)] == [1, 1, 1]
    assert balance.choose(0.0, preferred=1) == 0


@pytest.mark.parametrize("slots", [0, -1])
def test_a_server_without_a_number_of_slots_has_one(slots: int) -> None:
    assert Balance([slots]).choose(0.0) == 0


def test_a_server_that_failed_is_left_out_and_tried_again() -> None:
    balance = Balance([2, 2])
    assert balance.failed(0, 0.0)
    assert {balance.choose(FIRST_PAUSE / 2) for _ in range(9)} == {1}
    assert balance.choose(FIRST_PAUSE) == 0, "one operation tries it"
    assert {balance.choose(FIRST_PAUSE, preferred=0) for _ in range(9)} == {1}, "and no other"
    assert balance.answered(0)
    assert balance.choose(FIRST_PAUSE) == 0
    assert not balance.answered(0)


def test_a_server_that_fails_again_is_left_out_for_longer() -> None:
    balance, now, pauses = Balance([1, 1]), 0.0, []
    for _ in range(12):
        assert balance.failed(0, now)
        begin = now
        while balance.choose(now) != 0:
            balance.ended(1)
            now += 0.25
        balance.ended(0)
        pauses.append(now - begin)
    assert pauses[:4] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]
    assert pauses[-1] == LONGEST_PAUSE


def test_operations_that_fail_together_count_once() -> None:
    balance = Balance([64, 64])
    assert [balance.failed(0, 0.0) for _ in range(32)].count(True) == 1
    assert balance.choose(FIRST_PAUSE) == 0


def test_an_abandoned_trial_makes_room_for_another() -> None:
    balance = Balance([1, 1])
    balance.failed(0, 0.0)
    assert balance.choose(FIRST_PAUSE) == 0
    balance.ended(0)
    assert balance.choose(FIRST_PAUSE, preferred=0) == 0


def test_the_servers_that_an_operation_tried_are_not_chosen_again() -> None:
    balance = Balance([1, 1])
    assert balance.choose(0.0, preferred=0, tried={0}) == 1
    assert balance.choose(0.0, tried={0, 1}) is None


def test_an_excluded_server_is_chosen_if_it_is_the_only_one() -> None:
    balance = Balance([1, 1, 1])
    for now, index in enumerate((2, 0, 1)):
        balance.failed(index, now / 100)
    assert balance.choose(0.1) == 2, "the one whose pause ends first"
    assert balance.choose(0.1, tried={2}) == 0
