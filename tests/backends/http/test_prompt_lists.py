# SPDX-License-Identifier: Apache-2.0
"""Lists of prompts that fail or break off: tests/servers/test_prompt_lists.py sends them to a real server."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from inference_bridge import (
    ContextLengthExceededError,
    GenerateConfig,
    GenerationTimeoutError,
    ModelClosedError,
    Request,
    ServerError,
    Token,
    load_model,
)
from inference_bridge.backends.http import prompt_lists

from ...parts.models.tiny import until
from ...parts.servers.fault_server import HEAD, Asked, FaultServer, reply, serving, status

PATH = "/v1/completions"
LISTED = {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 100}]}


def event(index: int, text: str, *, ends: bool = False) -> bytes:
    choice = {"index": index, "text": text, "finish_reason": "length" if ends else None}
    usage = {"prompt_tokens": 10 + index, "completion_tokens": 2}
    return b"data: " + json.dumps({"choices": [choice], "usage": usage}).encode() + b"\n\n"


def answer(connection: socket.socket, asked: Asked) -> None:
    """Two tokens for each prompt: its number in the list, or "s" for a single prompt, and its text."""
    prompts = asked.json["prompt"]
    single = isinstance(prompts, str)
    texts: Sequence[str] = [prompts] if single else prompts
    out = [event(index, "s" if single else str(index)) for index in range(len(texts))]
    out += [event(index, text, ends=True) for index, text in reversed(list(enumerate(texts)))]
    connection.sendall(HEAD + b"".join(out) + b"data: [DONE]\n\n")


def served(*answers: Any) -> Any:
    return serving({"/v1/models": [reply(LISTED)], PATH: list(answers)}, native=False)


def prompts(server: FaultServer) -> list[Any]:
    return [asked.json["prompt"] for asked in server.asked if asked.path == PATH]


def test_the_answers_go_to_their_prompts() -> None:
    with served(answer) as server, load_model(server.address) as model:
        results = model.batch_generate(["a", "b", "c"], max_tokens=2)
        assert [result.text for result in results] == ["0a", "1b", "2c"]
        assert [result.metrics.prompt_tokens for result in results] == [10, 11, 12]
        assert {result.finish_reason for result in results} == {"length"}
        assert prompts(server) == [["a", "b", "c"]]


async def test_lists_are_sent_in_a_coroutine() -> None:
    with served(answer) as server:
        async with load_model(server.address) as model:
            results = await model.abatch_generate(["a", "b", "c"], max_tokens=2)
            assert [result.text for result in results] == ["0a", "1b", "2c"]
            assert prompts(server) == [["a", "b", "c"]]


def test_the_length_of_a_list_is_limited() -> None:
    with served(answer) as server, load_model(server.address, parallel_slots=2) as model:
        texts = [result.text for result in model.batch_generate(list("abcde"), max_tokens=2)]
        assert [text[1:] for text in texts] == list("abcde")
        assert prompts(server)[0] == ["a", "b"]
        assert all(len(one) <= 2 for one in prompts(server))


def test_a_prompt_that_the_server_refuses_fails_alone() -> None:
    said = "This model's maximum context length is 100 tokens. However, your request has 300 input tokens."
    refusal = status(400, json.dumps({"error": {"message": said}}).encode())

    def picky(connection: socket.socket, asked: Asked) -> None:
        (refusal if "b" in asked.json["prompt"] else answer)(connection, asked)

    with served(picky) as server, load_model(server.address) as model:
        first, long, last = model.batch_generate(["a", "b", "c"], max_tokens=2)
        assert (first.text, last.text) == ("sa", "sc")
        assert isinstance(long.error, ContextLengthExceededError)
        assert prompts(server)[0] == ["a", "b", "c"]
        assert sorted(prompts(server)[1:]) == ["a", "b", "c"]


def test_max_tokens_of_all_is_not_lowered_for_one() -> None:
    said = "You passed 98 input tokens and requested 50 output tokens, but the context length is only 100 tokens."
    refusal = status(400, json.dumps({"error": {"message": said}}).encode())

    def picky(connection: socket.socket, asked: Asked) -> None:
        fits = "b" not in asked.json["prompt"] or asked.json["max_tokens"] <= 2
        (answer if fits else refusal)(connection, asked)

    with served(picky) as server, load_model(server.address) as model:
        assert [one.error for one in model.batch_generate(["a", "b"], max_tokens=50)] == [None, None]
        sent = [(asked.json["prompt"], asked.json["max_tokens"]) for asked in server.asked if asked.path == PATH]
        assert sent[0] == (["a", "b"], 50)
        assert sorted(sent[1:], key=repr) == [("a", 50), ("b", 2), ("b", 50)]


@pytest.mark.parametrize("broken", [b"", b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'])
def test_prompts_without_an_answer_are_sent_again_after_a_list_breaks_off(broken: bytes) -> None:
    def half(connection: socket.socket, _: Asked) -> None:
        connection.sendall(HEAD + event(1, "1") + event(0, "0") + event(0, "a", ends=True) + broken)

    with served(half, answer) as server, load_model(server.address) as model:
        whole, begun, other = model.batch_generate(["a", "b", "c"], max_tokens=2)
        assert (whole.text, whole.error) == ("0a", None)
        assert isinstance(begun.error, ServerError)
        assert begun.error.partial is not None
        assert begun.error.partial.text == "1"
        assert (other.text, other.error) == ("sc", None)
        assert prompts(server) == [["a", "b", "c"], "c"]


def test_errors_of_one_list_are_not_shared() -> None:
    def half(connection: socket.socket, _: Asked) -> None:
        connection.sendall(HEAD + event(0, "0") + event(1, "1"))

    with served(half) as server, load_model(server.address) as model:
        one, other = (result.error for result in model.batch_generate(["a", "b"], max_tokens=2))
        assert isinstance(one, ServerError)
        assert isinstance(other, ServerError)
        assert one.partial is not None
        assert other.partial is not None
        assert (one.partial.text, other.partial.text) == ("0", "1")


@pytest.mark.parametrize("index", [2, -1, "0", None, True])
def test_an_answer_with_an_unknown_index_is_an_error(index: Any) -> None:
    def strange(connection: socket.socket, _: Asked) -> None:
        said = {"choices": [{"index": index, "text": "x", "finish_reason": None}]}
        connection.sendall(HEAD + event(0, "0") + event(1, "1") + b"data: " + json.dumps(said).encode() + b"\n\n")

    with served(strange) as server, load_model(server.address) as model:
        errors = [result.error for result in model.batch_generate(["a", "b"], max_tokens=2)]
        assert all(isinstance(error, ServerError) and "prompt" in str(error) for error in errors)


def test_leaving_a_batch_closes_the_connection() -> None:
    with serving({"/v1/models": [reply(LISTED)]}, native=False) as server:
        server.answers[PATH] = [server.until_gone(HEAD + event(0, "0") + event(1, "1"))]
        with load_model(server.address) as model:
            with model.stream_batch(["a", "b"]) as batch:
                next(batch)
            assert server.gone.wait(20)


def test_closing_the_model_ends_a_list() -> None:
    with serving({"/v1/models": [reply(LISTED)]}, native=False) as server:
        server.answers[PATH] = [server.until_gone(HEAD + event(0, "0") + event(1, "1"))]
        model = load_model(server.address)
        batch = model.stream_batch(["a", "b"])
        next(batch)
        model.close()
        with pytest.raises(ModelClosedError):
            list(batch)
        assert server.gone.wait(20)


@pytest.mark.parametrize("begun", [b"", HEAD, HEAD + event(0, "0") + event(1, "1")], ids=len)
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_closing_the_model_wakes_a_batch_that_waits_for_a_list(begun: bytes, mode: str) -> None:
    with serving({"/v1/models": [reply(LISTED)]}, native=False) as server:
        server.answers[PATH] = [server.until_gone(begun)]
        model = load_model(server.address)

        async def drain() -> None:
            async for _ in model.astream_batch(["a", "b"]):
                pass

        def work() -> None:
            if mode == "async":
                asyncio.run(drain())
            else:
                list(model.stream_batch(["a", "b"]))

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(work)
            until(lambda: PATH in server.paths())
            model.close()
            assert isinstance(waiting.exception(20), ModelClosedError)


def test_a_prompt_that_is_cancelled_before_its_list_is_sent_wakes_its_batch() -> None:
    closed: list[bool] = []

    class Noted:
        def put(self, item: Token) -> None: ...
        def close(self, error: BaseException | None = None) -> None:
            closed.append(True)

    waiting = prompt_lists._Waiting(None, None)  # type: ignore[arg-type]
    request = Request("generate", GenerateConfig())
    waiting.add(request, Noted())
    request.cancel()
    waiting.send()
    assert closed == [True]


def test_each_prompt_has_its_own_timeout() -> None:
    with serving({"/v1/models": [reply(LISTED)]}, native=False) as server:
        server.answers[PATH] = [server.until_gone(HEAD + event(0, "0"))]
        with load_model(server.address) as model:
            begun, other = (result.error for result in model.batch_generate(["a", "b"], timeout=1))
            assert isinstance(begun, GenerationTimeoutError)
            assert isinstance(other, GenerationTimeoutError)
            assert begun.partial is not None
            assert other.partial is not None
            assert (begun.partial.text, other.partial.text) == ("0", "")
        assert prompts(server) == [["a", "b"]]


@pytest.mark.parametrize(
    ("load", "options"),
    [
        ({"extra": {"n": 1}}, {}),
        ({}, {"stop": [f"stop {number}" for number in range(5)]}),
        ({}, {"n": 2, "seed": 1}),
    ],
    ids=["extra", "stops", "seeds"],
)
def test_prompts_that_cannot_form_a_list_are_sent_singly(load: Any, options: Any) -> None:
    with served(answer) as server, load_model(server.address, **load) as model:
        model.batch_generate(["a", "b"], max_tokens=2, **options)
        assert set(prompts(server)) == {"a", "b"}


def test_several_servers_share_the_prompts() -> None:
    with served(answer) as one, served(answer) as other, load_model(f"{one.address},{other.address}") as model:
        model.batch_generate(["a", "b", "c", "d"], max_tokens=2)
        assert sorted(prompts(one) + prompts(other)) == ["a", "b", "c", "d"]
        assert len(prompts(one)) == len(prompts(other)) == 2
