# SPDX-License-Identifier: Apache-2.0
"""Batches that go to a real server as lists of prompts: the server at SUITE_URL, if it takes lists."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from inference_bridge import ContextLengthExceededError, load_model
from inference_bridge.backends.http.model import HttpModel
from inference_bridge.backends.http.servers import SERVERS

from .test_contract import HANG_TIMEOUT, KEY, URL

pytestmark = pytest.mark.skipif(not URL, reason="SUITE_URL names no server: see python -m tests.servers")

PROMPTS = [f"Number {number}: once upon a time there was a" for number in range(6)]


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of prompts in each list that was sent."""
    sent: list[int] = []
    plain = HttpModel.list_call

    def noted(self: HttpModel, fields: object, prompts: list[str]) -> object:
        sent.append(len(prompts))
        return plain(self, fields, prompts)  # type: ignore[arg-type]

    monkeypatch.setattr(HttpModel, "list_call", noted)
    return sent


@pytest.fixture
def model() -> Iterator[HttpModel]:
    with load_model(URL, api_key=KEY) as model:
        assert isinstance(model, HttpModel)
        if not SERVERS[model.facts.server].lists:
            # The backend sends single requests there: see the field `lists` of the table of servers.
            pytest.skip("the server takes no lists of prompts")
        yield model


def test_a_list_is_answered_as_its_prompts_are_alone(model: HttpModel, lists: list[int]) -> None:
    results = model.batch_generate(PROMPTS, max_tokens=8)
    assert lists == [len(PROMPTS)]
    for prompt, result in zip(PROMPTS, results, strict=True):
        alone = model.generate(prompt, max_tokens=8).result()
        assert result.error is None
        assert (result.finish_reason, len(result.tokens)) == (alone.finish_reason, len(alone.tokens))
        assert [token.id for token in result.tokens if token.id is None] == []
        assert result.metrics.prompt_tokens == alone.metrics.prompt_tokens
        assert result.metrics.generated_tokens == alone.metrics.generated_tokens == 8


async def test_a_list_in_a_coroutine_is_sent_as_one_request(model: HttpModel, lists: list[int]) -> None:
    found = dict.fromkeys(range(len(PROMPTS)), 0)
    async for index, _ in model.astream_batch(PROMPTS, max_tokens=8):
        found[index] += 1
    assert lists == [len(PROMPTS)]
    assert found == dict.fromkeys(range(len(PROMPTS)), 8)


def test_a_prompt_that_is_too_long_fails_alone(model: HttpModel, lists: list[int]) -> None:
    limit = model.info.context_length
    first, long, last = model.batch_generate([PROMPTS[0], "a" + " a" * (limit + 16), PROMPTS[1]], max_tokens=4)
    assert lists == [3]
    assert isinstance(long.error, ContextLengthExceededError)
    assert first.error is last.error is None
    assert len(first.tokens) == len(last.tokens) == 4


def test_a_prompt_with_little_room_does_not_limit_the_others(model: HttpModel) -> None:
    limit = model.info.context_length
    first, long, last = model.batch_generate([PROMPTS[0], "a" + " a" * (limit - 4), PROMPTS[1]], max_tokens=8)
    assert (first.error, long.error, last.error) == (None, None, None)
    assert len(first.tokens) == len(last.tokens) == 8
    assert 0 < len(long.tokens) < 8


def test_leaving_the_batch_ends_the_server_s_work(model: HttpModel, lists: list[int]) -> None:
    with model.stream_batch(PROMPTS, max_tokens=-1) as batch:
        for _ in range(len(PROMPTS)):
            next(batch)
    assert lists == [len(PROMPTS)]
    client = model.connection().client()
    deadline = time.monotonic() + HANG_TIMEOUT
    while True:
        said = client.get(f"{URL}/metrics").text.splitlines()
        running = [float(line.split()[-1]) for line in said if line.startswith("vllm:num_requests_running")]
        if not any(running):
            return
        assert time.monotonic() < deadline, "the server still works for a batch that was left"
        time.sleep(0.05)
