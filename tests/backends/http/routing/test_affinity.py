# SPDX-License-Identifier: Apache-2.0
"""A conversation is known again by its beginning."""

from __future__ import annotations

from typing import Any

import pytest

from inference_bridge import Attachment, Message, ToolCall
from inference_bridge.backends.http.routing.affinity import Affinity, prefixes

SYSTEM = Message("system", "You are a helpful assistant.")


def turn(number: int) -> list[Message]:
    return [Message("user", f"question {number}"), Message("assistant", f"answer {number}")]


def test_the_next_turn_goes_to_the_server_of_the_first() -> None:
    affinity = Affinity()
    first = [SYSTEM, Message("user", "question 1")]
    affinity.remember(prefixes(first), 3)
    later = [SYSTEM, *turn(1), Message("user", "question 2")]
    assert affinity.server(prefixes(later)) == 3
    assert affinity.server(prefixes(first)) == 3
    affinity.remember(prefixes(later), 1)  # it was sent to another one
    assert affinity.server(prefixes([SYSTEM, *turn(1), *turn(2), Message("user", "question 3")])) == 1


def test_a_shared_system_prompt_is_not_a_conversation() -> None:
    affinity = Affinity()
    affinity.remember(prefixes([SYSTEM, Message("user", "question 1")]), 3)
    assert affinity.server(prefixes([SYSTEM, Message("user", "question 2")])) is None


@pytest.mark.parametrize(
    "other",
    [
        Message("user", "b"),
        Message("tool", "a", tool_call_id="1"),
        Message("user", "a", reasoning="hm"),
        Message("user", ["a", Attachment("image/png", data=b"1")]),
        Message("user", ["a", Attachment("image/png", url="https://h.example/1.png")]),
        Message("user", "a", tool_calls=[ToolCall("1", "f", {})]),
    ],
)
def test_different_conversations_have_different_keys(other: Message) -> None:
    assert prefixes([Message("user", "a"), SYSTEM])[-1] != prefixes([other, SYSTEM])[-1]


def test_the_conversation_that_was_not_used_for_the_longest_time_is_forgotten() -> None:
    affinity = Affinity(remembered=2)
    talks: list[Any] = [prefixes([Message("user", str(number))]) for number in range(3)]
    affinity.remember(talks[0], 0)
    affinity.remember(talks[1], 1)
    assert affinity.server(talks[0]) == 0
    affinity.remember(talks[2], 2)
    assert [affinity.server(talk) for talk in talks] == [0, None, 2]


def test_a_request_without_messages_has_no_affinity() -> None:
    affinity = Affinity()
    affinity.remember(prefixes([]), 1)
    assert affinity.server([]) is None
