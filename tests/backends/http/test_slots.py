# SPDX-License-Identifier: Apache-2.0
"""The number of operations of a batch in flight: stated by the server, set by the user, or measured."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from inference_bridge import load_model
from inference_bridge.backends.http.detection.server_info import QUEUING_SLOTS
from inference_bridge.backends.http.facts import DEFAULT_SLOTS
from inference_bridge.backends.http.routing.width import Width

from ...parts.servers.fault_server import PROPS, Answer, Asked, reply, serving, status, stream

TEXT = stream({"choices": [{"index": 0, "text": "Hello", "finish_reason": "stop"}]})
BUSY = status(429, b'{"error": {"message": "too many requests"}}', Retry_After="0")


def listed(owner: str) -> Answer:
    return reply({"data": [{"id": "m", "object": "model", "owned_by": owner}]})


@pytest.mark.parametrize(
    ("answers", "slots", "known"),
    [
        ({"/props": [reply(PROPS | {"total_slots": 7})]}, 7, True),
        ({"/props": [reply({**PROPS, "total_slots": None})], "/slots": [reply([{}, {}, {}])]}, 3, True),
        ({"/props": [reply({**PROPS, "total_slots": None})]}, DEFAULT_SLOTS, False),
        ({"/v1/models": [listed("sglang")], "/get_server_info": [reply({"max_running_requests": 48})]}, 48, True),
        ({"/v1/models": [listed("sglang")], "/get_server_info": [reply({"max_running_requests": None})]}, 64, False),
        ({"/v1/models": [listed("vllm")]}, QUEUING_SLOTS, False),
        ({"/v1/models": [listed("me")]}, 1, True),
        ({"/v1/models": [listed("somebody")]}, DEFAULT_SLOTS, False),
    ],
)
def test_slots_are_read_from_the_server(answers: dict[str, list[Answer]], slots: int, known: bool) -> None:
    with serving(answers, native=False) as server, load_model(server.address) as model:
        assert model.parallel == slots
        assert model.facts.slots_known is known  # type: ignore[attr-defined]


@pytest.mark.parametrize("owner", ["vllm", "somebody"])
def test_slots_that_are_set_hold(owner: str) -> None:
    answers = {"/v1/models": [listed(owner)], "/v1/completions": [BUSY, TEXT]}
    with serving(answers, native=False) as server, load_model(server.address, parallel_slots=9) as model:
        assert [result.text for result in model.batch_generate(["a"] * 12)] == ["Hello"] * 12
        assert model.parallel == 9


class Counting:
    """Answers when `together` requests have arrived (0: immediately). Optionally refuses the last one once."""

    def __init__(self, together: int = 0, *, refuses: bool = False) -> None:
        self.now, self.largest, self.together, self._refuses = 0, 0, together, refuses
        self.full = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, connection: Any, asked: Asked) -> None:
        answer = TEXT
        with self._lock:
            self.now += 1
            self.largest = max(self.largest, self.now)
            if self.now >= self.together and not self.full.is_set():
                answer = BUSY if self._refuses else TEXT
                self.full.set()
        self.full.wait(20)
        answer(connection, asked)
        with self._lock:
            self.now -= 1


@pytest.mark.parametrize("background", [False, True])
async def test_a_batch_shrinks_where_the_server_refuses(background: bool) -> None:
    """No prompt is lost, and later prompts are sent with fewer in flight."""
    counting = Counting(DEFAULT_SLOTS, refuses=True)
    with serving({"/v1/completions": [counting]}, native=False) as server, load_model(server.address) as model:
        assert model.parallel == DEFAULT_SLOTS
        prompts = ["a"] * 10
        results = await model.abatch_generate(prompts) if background else model.batch_generate(prompts)
        assert [result.text for result in results] == ["Hello"] * 10
        assert model.parallel < DEFAULT_SLOTS


def test_a_batch_uses_the_width_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as the limit has grown, more prompts are in flight."""

    def produced(self: Width, tokens: int, now: float) -> None:
        self.limit = 12

    monkeypatch.setattr(Width, "produced", produced)
    counting = Counting()
    with serving({"/v1/completions": [counting]}, native=False) as server, load_model(server.address) as model:
        assert model.batch_generate(["a"])[0].text == "Hello"
        counting.full.clear()
        counting.together = 12
        assert [result.text for result in model.batch_generate(["a"] * 24)] == ["Hello"] * 24
        assert counting.largest == 12


def test_every_ended_operation_frees_its_place() -> None:
    answers = {"/v1/completions": [TEXT, status(500, b"{}"), status(401, b"{}"), stream({"error": "no"}), TEXT]}
    with serving(answers, native=False) as server, load_model(server.address) as model:
        results = model.batch_generate(["a"] * 8)
        assert sum(result.error is None for result in results) == 5
        unread = model.generate("a")
        next(unread)
        unread.close()
        assert model._width is not None  # type: ignore[attr-defined]
        assert model._width._running == 0  # type: ignore[attr-defined]
