# SPDX-License-Identifier: Apache-2.0
"""The http backend on a real llama-server, beside the same weights in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from inference_bridge import Message, TextModel, load_model

from ...parts.models.tiny import until
from ...parts.servers.processes import KEY, llama_server

TOLERANCE = 0.5
"""Of log probabilities: the wheel's llama.cpp and llama-cpp-python's are built with other instructions."""

PROMPT = "The capital of France is"
GREEDY: dict[str, Any] = {"max_tokens": 16, "temperature": 0.0}


@pytest.fixture(scope="module")
def address(demo_model_path: Path) -> Iterator[str]:
    with llama_server(demo_model_path, slots=2, length=512, key=KEY, exact=True) as address:
        yield address


@pytest.fixture(scope="module")
def model(address: str) -> Iterator[TextModel]:
    with load_model(address, api_key=KEY) as model:
        yield model


@pytest.fixture(scope="module")
def local(demo_model_path: Path) -> Iterator[TextModel]:
    options: dict[str, Any] = {"context_length": 512, "parallel_slots": 1, "deterministic": True}
    with load_model(demo_model_path, backend="llama_cpp", **options) as model:
        yield model


def slots(address: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx2.get(address + "/slots", headers={"Authorization": f"Bearer {KEY}"}).json()
    return found


@pytest.mark.parametrize("prompt", [PROMPT, "Once upon a time"])
def test_the_same_tokens_as_in_process(model: TextModel, local: TextModel, prompt: str) -> None:
    here = local.generate(prompt, logprobs=3, **GREEDY).result()
    there = model.generate(prompt, logprobs=3, **GREEDY).result()
    assert there.text == here.text
    assert len(there.tokens) == len(here.tokens)
    assert [token.id for token in there.tokens] == [token.id for token in here.tokens]
    for ours, theirs in zip(here.tokens[0].top_logprobs, there.tokens[0].top_logprobs, strict=True):
        assert theirs.id == ours.id
        assert theirs.logprob == pytest.approx(ours.logprob, abs=TOLERANCE)


def test_characters_of_several_tokens(model: TextModel, local: TextModel) -> None:
    here, there = (one.generate("Emoji: \U0001f389\U0001f389", **GREEDY).result() for one in (local, model))
    assert there.text == here.text
    assert len(there.tokens) == len(here.tokens) == there.metrics.generated_tokens
    # The server gives the id of a character's last token only.
    assert {token.id for token in there.tokens} - {None} <= {token.id for token in here.tokens}


def test_the_same_answer_as_in_process(model: TextModel, local: TextModel) -> None:
    turns = [Message("user", "What is the capital of France?")]
    here, there = (one.chat(turns, logprobs=2, **GREEDY).result() for one in (local, model))
    assert there.metrics.prompt_tokens == here.metrics.prompt_tokens
    expected, found = ({top.id: top.logprob for top in one.tokens[0].top_logprobs} for one in (here, there))
    for id in expected.keys() & found.keys():
        assert found[id] == pytest.approx(expected[id], abs=TOLERANCE)
    assert expected.keys() & found.keys()
    assert None not in {token.id for token in there.tokens}
    assert there.metrics.generated_tokens == len(there.tokens) + (there.finish_reason == "stop")


def test_the_same_counts_and_labels_as_in_process(model: TextModel, local: TextModel) -> None:
    for text in ("", "hello world", "<|im_start|>user", "na\u00efve \u65e5\u672c"):
        assert model.count_tokens(text) == local.count_tokens(text)
    prompts = ["A great film. Sentiment:", "An awful film. Sentiment:"]
    labels = [" positive", " negative", " \U0001f600"]
    for here, there in zip(local.classify(prompts, labels=labels), model.classify(prompts, labels=labels), strict=True):
        assert there.label == here.label
        assert there.token.id == here.token.id
        assert here.scores is not None
        assert there.scores == pytest.approx(here.scores, abs=TOLERANCE)
    (here,), (there,) = local.classify([PROMPT], logprobs=2), model.classify([PROMPT], logprobs=2)
    assert there.token.text == here.token.text == " Paris"
    assert [top.id for top in there.token.top_logprobs] == [top.id for top in here.token.top_logprobs]


def test_metrics(model: TextModel) -> None:
    model.generate("One, two, three, four, five, six", max_tokens=1).text()
    metrics = model.generate("One, two, three, four, five, six", **GREEDY).result().metrics
    assert metrics.generated_tokens == 16
    assert metrics.prompt_tokens > metrics.cached_tokens > 0
    assert 0 < metrics.prefill_seconds < metrics.total_seconds
    assert 0 < metrics.decode_seconds < metrics.total_seconds


@pytest.mark.parametrize("read", [1, 4])
def test_closing_a_stream_stops_the_server_s_work(model: TextModel, address: str, read: int) -> None:
    stream = model.generate("Count: 1, 2, 3,", max_tokens=-1)
    for _ in range(read):
        next(stream)
    (number,) = (number for number, slot in enumerate(slots(address)) if slot["is_processing"])
    stream.close()
    until(lambda: not slots(address)[number]["is_processing"])
    # It did not run into the end of its context, hundreds of tokens later: it would go on.
    assert slots(address)[number]["next_token"][0]["has_next_token"]


def test_requests_beyond_the_slots_wait_in_order(model: TextModel) -> None:
    prompts = [f"{number} and {number + 1} and" for number in range(5)]
    results = model.batch_generate(prompts, max_tokens=6, temperature=0.0)
    assert [result.error for result in results] == [None] * 5
    assert {len(result.tokens) for result in results} == {result.metrics.generated_tokens for result in results} == {6}
    assert len({result.text for result in results}) > 1


def test_options_reach_the_server(model: TextModel) -> None:
    first = model.generate("Once upon a time", max_tokens=8, temperature=1.0, seed=3).text()
    assert model.generate("Once upon a time", max_tokens=8, temperature=1.0, seed=3).text() == first
    assert model.generate("Once upon a time", max_tokens=8, temperature=1.0, seed=4).text() != first
    stopped = model.generate("1 2 3 4", max_tokens=20, temperature=0.0, stop=["7"]).result()
    assert "7" not in stopped.text
    assert stopped.finish_reason == "stop"
    assert stopped.metrics.prompt_tokens > 0
