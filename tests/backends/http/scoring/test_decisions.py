# SPDX-License-Identifier: Apache-2.0
"""Deciding on servers: a real llama-server, and the reference server of decision models."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from inference_bridge import Choice, LoadConfig, Message, Noul, Score, ServerError, UnsupportedError, load_model
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
from inference_bridge.decisions import Question

from ....parts.servers.fault_server import Answer, Asked, reply, serving, status
from ....parts.servers.processes import llama_cpp_server, llama_server

STATE = "Production is down, and I want my money back!"
QUESTIONS: dict[str, Question] = {
    "urgent": Noul("Is it urgent?", {"true": "today", "false": "later"}),
    "team": Choice({"billing": "payments", "technical support": None, "technical support abroad": None}, "Which team?"),
    "anger": Score(["calm", "annoyed", "furious"], "How angry?"),
}
TEAMS = ["billing", "technical support", "technical support abroad"]
TOLERANCE = 0.05


# ---------------------------------------------------------------- llama-server


def test_llama_server_answers_as_the_model_in_process(demo_model_path: Path) -> None:
    with LlamaCppBackend().load_model(str(demo_model_path), LoadConfig(context_length=512)) as own:
        expected = own.decide(STATE, QUESTIONS)
    with llama_server(demo_model_path, exact=True) as address, load_model(address) as model:
        for found in (model.decide(STATE, QUESTIONS), asyncio.run(model.adecide(STATE, QUESTIONS))):
            # The server may be asked more than once for an evaluation: for a token that it did not list.
            assert found.metrics.prompt_tokens >= expected.metrics.prompt_tokens
            assert found.metrics.cached_tokens > 0
            assert found.metrics.generated_tokens == 0
            assert list(found.answers) == list(QUESTIONS)
            for name, answer in expected.answers.items():
                assert found[name].probabilities == pytest.approx(answer.probabilities, abs=TOLERANCE)
                assert found[name].mass == pytest.approx(answer.mass, abs=TOLERANCE)


_TURN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
_THINKS = _TURN + "<think>\n"
_MAY_THINK = _TURN + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"


@pytest.mark.parametrize(("template", "refused"), [(_THINKS, True), (_MAY_THINK, False)])
def test_a_model_that_reasons_first_on_llama_server(demo_model_path: Path, template: str, refused: bool) -> None:
    with llama_server(demo_model_path, template=template) as address, load_model(address) as model:
        assert "reasoning" in model.capabilities
        if not refused:
            assert model.decide(STATE, QUESTIONS).nouls["urgent"].mass is not None
            return
        with pytest.raises(UnsupportedError, match="reasons") as raised:
            model.decide(STATE, QUESTIONS)
        assert raised.value.feature == "decide"


def test_a_server_that_cannot_render_chats_is_refused(demo_model_path: Path) -> None:
    with llama_cpp_server(demo_model_path) as address, load_model(address) as model:
        for decide in (model.decide, lambda *asked: asyncio.run(model.adecide(*asked))):
            with pytest.raises(UnsupportedError) as refused:
                decide(STATE, QUESTIONS)
            assert refused.value.feature == "decide"


# ---------------------------------------------------------------- decision models


@contextmanager
def reference(*faults: str) -> Iterator[str]:
    """The address of jevcompat's reference server, with some of its faults (`jevcompat mock --list-faults`)."""
    if importlib.util.find_spec("jevcompat") is None:
        pytest.skip("jevcompat is not installed")
    command = [sys.executable, "-u", "-m", "jevcompat.cli", "mock", "--port", "0"]
    command += [f"--fault={fault}" for fault in faults]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+?:\d+", process.stdout.readline())
        assert found is not None
        yield found[0]
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def test_a_decision_model_is_asked_through_its_own_endpoint() -> None:
    with reference() as address, load_model(address) as model:
        messages = [Message("user", STATE)]
        for state in (STATE, {"subject": STATE, "number": 3}, messages):
            decision = model.decide(state, QUESTIONS)
            assert list(decision.answers) == list(QUESTIONS)
            assert list(decision.choices["team"].probabilities) == TEAMS
            assert decision.scores["anger"].legend == {0: "calm", 1: "annoyed", 2: "furious"}
            for answer in decision.answers.values():
                assert sum(answer.probabilities.values()) == pytest.approx(1)
                assert answer.mass is None
            assert decision.metrics.prompt_tokens > 0
            assert asyncio.run(model.adecide(state, QUESTIONS)).answers == decision.answers


def test_a_decision_model_that_refuses_one_question_answers_the_next() -> None:
    with reference("no-null-description", "validation-400") as address, load_model(address) as model:
        with pytest.raises(ServerError) as refused:
            model.decide(STATE, {"team": QUESTIONS["team"]})
        assert refused.value.status == 400
        assert model.decide(STATE, {"urgent": QUESTIONS["urgent"]}).nouls["urgent"].mass is None


MODELS = reply({"data": [{"id": "m", "owned_by": "somebody"}]})


def answering(answer: Any) -> Any:
    return serving({"/v1/systemone": [answer], "/v1/models": [MODELS]}, native=False)


def test_the_request_has_the_state_and_the_questions() -> None:
    body = {"model": "m", "answers": {"a": {"type": "noul", "noul": 0.25}}, "usage": {"input_tokens": 7}}
    with answering(reply(body)) as server, load_model(server.address) as model:
        decision = model.decide([Message("user", "x")], {"a": Noul("A?", {"true": "y"})})
        (sent,) = [asked for asked in server.asked if asked.path == "/v1/systemone"]
    assert json.loads(sent.body) == {
        "state": [{"role": "user", "content": "x"}],
        "questions": {"a": {"type": "noul", "instructions": "A?", "criteria": {"true": "y"}}},
        "model": "m",
    }
    assert (decision.nouls["a"].noul, decision.metrics.prompt_tokens) == (0.25, 7)


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"a": {"type": "noul"}},
        {"a": {"type": "noul", "noul": 1.5}},
        {"a": {"type": "noul", "noul": "much"}},
        {"a": {"type": "noul", "noul": None}},
        [],
    ],
    ids=str,
)
def test_a_malformed_answer_is_a_server_error(answers: Any) -> None:
    body = {"answers": answers, "usage": {}}
    with (
        answering(reply(body)) as server,
        load_model(server.address) as model,
        pytest.raises(ServerError),
    ):
        model.decide("x", {"a": Noul("A?")})


@pytest.mark.parametrize("code", [404, 405, 501])
def test_support_for_decisions_is_requested_once(code: int) -> None:
    answers = {"/v1/systemone": [status(code)], "/v1/decisions": [status(code)], "/v1/models": [MODELS]}
    with serving(answers, native=False) as server, load_model(server.address) as model:
        for _ in range(2):
            with pytest.raises(UnsupportedError):
                model.decide("x", {"a": Noul("A?")})
        assert server.paths().count("/v1/systemone") == server.paths().count("/v1/decisions") == 1


@pytest.mark.parametrize("path", ["/v1/systemone", "/v1/decisions"])
def test_an_endpoint_that_refuses_a_request_gets_the_next_one(path: str) -> None:
    answer = {"type": "noul", "noul": 0.25} if path == "/v1/systemone" else {"type": "predicate", "probability": 0.25}
    found = {"answers": {"a": answer} if path == "/v1/systemone" else [answer]}
    refusal = status(400, b'{"error": {"message": "criteria are too long"}}', Content_Type="application/json")
    with (
        serving({path: [refusal, reply(found)], "/v1/models": [MODELS]}, native=False) as server,
        load_model(server.address) as model,
    ):
        with pytest.raises(ServerError) as refused:
            model.decide("x", {"a": Noul("A?")})
        assert refused.value.status == 400
        assert model.decide("x", {"a": Noul("A?")}).nouls["a"].noul == 0.25
        assert server.paths().count(path) == 2


# ---------------------------------------------------------------- vLLM


def tokenizing(connection: socket.socket, asked: Asked) -> None:
    """A token a letter; a conversation is its text and "|"."""
    body = asked.json
    text = body["prompt"] if "prompt" in body else str(body["messages"][0]["content"])[:3] + "|"
    reply({"count": len(text), "tokens": list(text.encode()), "token_strs": list(text)})(connection, asked)


def scoring(connection: socket.socket, asked: Asked) -> None:
    """The letter "Y" behind a prompt has the probability 0.75, and any other letter 0.25."""
    choices = []
    for index, ids in enumerate(asked.json["prompt"]):
        told = [{str(id): {"logprob": math.log(0.75 if id == ord("Y") else 0.25)}} for id in ids]
        choices.append({"index": index, "prompt_token_ids": ids, "prompt_logprobs": [None, *told[1:]], "text": ""})
    reply({"choices": choices})(connection, asked)


def test_labels_are_scored_behind_the_conversation_that_vllm_renders() -> None:
    answers: dict[str, list[Answer]] = {
        "/v1/models": [reply({"data": [{"id": "m", "owned_by": "vllm"}]})],
        "/tokenize": [tokenizing],
        "/v1/completions": [scoring],
    }
    with serving(answers, native=False) as server, load_model(server.address) as model:
        for decision in (model.decide("x", {"a": Noul("A?")}), asyncio.run(model.adecide("x", {"a": Noul("A?")}))):
            yes, no = 0.75 * 0.25 * 0.25, 0.25 * 0.25
            assert decision.nouls["a"].noul == pytest.approx(yes / (yes + no))
            assert decision.nouls["a"].mass == pytest.approx(yes + no)
        (prompts, *_) = [asked.json["prompt"] for asked in server.asked if asked.path == "/v1/completions"]
        assert {bytes(ids).partition(b"|")[2] for ids in prompts} == {b"", b"Yes", b"No"}


# ---------------------------------------------------------------- OpenAI's API


def openai_answering(*answers: Any) -> Any:
    absent = status(404, b'{"error": {"message": "no such route"}}', Content_Type="application/json")
    body = {"model": "m", "answers": list(answers), "usage": {"input_tokens": 9}}
    routes = {"/v1/systemone": [absent], "/v1/decisions": [reply(body)], "/v1/models": [MODELS]}
    return serving(routes, native=False)


def test_openai_decisions_are_used_if_the_server_has_them() -> None:
    shares = dict(zip(TEAMS, (0.5, 0.25, 0.25), strict=True))
    answers = [
        {"type": "predicate", "name": "urgent", "probability": 0.75},
        {
            "type": "choice",
            "name": "team",
            "choice": "billing",
            "confidence": 0.5,
            "probabilities": [
                {"value": value, "probability": p} for value, p in zip(TEAMS, (0.5, 0.25, 0.25), strict=True)
            ],
        },
        {
            "type": "score",
            "name": "anger",
            "score": 1.5,
            "confidence": 0.1,
            "probabilities": [{"value": n, "label": "x", "probability": p} for n, p in enumerate((0, 0.5, 0.5))],
        },
    ]
    with openai_answering(*answers) as server, load_model(server.address) as model:
        decision = model.decide(STATE, QUESTIONS)
        (sent,) = [asked for asked in server.asked if asked.path == "/v1/decisions"]
    assert decision.nouls["urgent"].noul == 0.75
    assert dict(decision.choices["team"].probabilities) == shares
    assert decision.scores["anger"].score == 1.5
    assert decision.metrics.prompt_tokens == 9
    fields = json.loads(sent.body)
    assert fields["input"] == STATE
    assert [one["type"] for one in fields["questions"]] == ["predicate", "choice", "score"]
    assert "today" in fields["questions"][0]["instructions"]
    assert fields["questions"][1]["choices"][0] == {"value": "billing", "description": "payments"}
    assert [one["label"] for one in fields["questions"][2]["levels"]] == ["calm", "annoyed", "furious"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"type": "refusal", "name": "a"}, UnsupportedError),
        ({"type": "predicate"}, ServerError),
        ({"type": "predicate", "probability": 2}, ServerError),
    ],
    ids=str,
)
def test_a_refusal_of_openai_s_decisions(answer: Any, error: type[Exception]) -> None:
    with openai_answering(answer) as server, load_model(server.address) as model, pytest.raises(error):
        model.decide(STATE, {"a": Noul("A?")})
