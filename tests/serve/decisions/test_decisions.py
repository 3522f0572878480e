# SPDX-License-Identifier: Apache-2.0
"""Typed questions to a server: the System One API and OpenAI's decisions, on the real small model."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

import inference_bridge as ib
from inference_bridge.decisions import Question

from ...parts.models.contract_models import DEMO_MODEL
from ...parts.models.tiny_gguf import write_llama
from ...parts.servers.answering import Everything
from ..conftest import running

STATE = "Production is down since this morning. I want my money back!"
ANGER = ["calm", "annoyed", "furious"]


@pytest.fixture(scope="module")
def model() -> Iterator[ib.TextModel]:
    """A deterministic model: its answers do not depend on other questions."""
    with ib.load_model(DEMO_MODEL, context_length=2048, parallel_slots=2, deterministic=True) as model:
        yield model


@pytest.fixture(scope="module")
def address(model: ib.TextModel) -> Iterator[str]:
    with running({"small": model, "tiny": Everything()}) as at:
        yield at


def asking(address: str, questions: Any, **more: Any) -> httpx2.Response:
    return httpx2.post(f"{address}/v1/systemone", json={"state": STATE, "questions": questions, **more}, timeout=60)


# ---------------------------------------------------------------- System One


def unmet(report: Any) -> list[str]:
    """The requirements that a server did not meet, the optional ones too."""
    assert report.aborted is None
    return [f"{one.level} {one.id}: {one.findings[0].message}" for one in report.results if one.status == "fail"]


def test_system_one_conforms(tmp_path: Path) -> None:
    """jevcompat's whole suite, on a tiny random model, which has room for a choice of 255 options."""
    runner = pytest.importorskip("jevcompat.runner", reason="jevcompat is not installed")
    file = write_llama(tmp_path / "tiny.gguf", 32768)
    with (
        ib.load_model(f"llama_cpp:{file}", context_length=32768, parallel_slots=1, deterministic=True) as tiny,
        running({"tiny": tiny}) as address,
    ):
        report = runner.run(address)
    assert unmet(report) == []
    assert report.untested_musts == []
    assert report.conformant


@pytest.mark.slow
def test_system_one_conforms_on_the_small_model(model: ib.TextModel) -> None:
    """The suite without the choices of up to 255 options, and without the samples of equal answers.

    The tiny model shows those, and tests/engine/test_decide.py that answers of this model do not depend on the other
    questions, on their order or their names.
    """
    runner = pytest.importorskip("jevcompat.runner", reason="jevcompat is not installed")
    cases = {one.name for one in pytest.importorskip("jevcompat.checks").CASES if "semantics" not in one.name}
    cases -= {"choice-options", "out-of-range"}
    with running({"small": model}) as address:
        report = runner.run(address, only=cases)
    assert unmet(report) == []


def test_system_one_explains_a_wrong_key(model: ib.TextModel) -> None:
    runner = pytest.importorskip("jevcompat.runner", reason="jevcompat is not installed")
    with running({"small": model}, key="a key") as address:
        report = runner.run(address, key="a key", only={"auth"})
    assert unmet(report) == []


def test_system_one_answers_as_the_model(model: ib.TextModel, address: str) -> None:
    expected = model.decide(STATE, {"urgent": ib.Noul("Is it urgent?"), "anger": ib.Score(ANGER)})
    questions = {
        "urgent": {"type": "noul", "instructions": "Is it urgent?"},
        "anger": {"type": "score", "criteria": ANGER},
    }
    answered = asking(address, questions, model="jev-latest").json()
    assert answered["model"] == "small"
    urgent, anger = answered["answers"]["urgent"], answered["answers"]["anger"]
    assert urgent == {
        "type": "noul",
        "noul": expected.nouls["urgent"].noul,
        "x_confidence": expected["urgent"].confidence,
        "x_mass": expected["urgent"].mass,
    }
    assert anger["score"] == expected.scores["anger"].score
    assert anger["legend"] == {"0": "calm", "1": "annoyed", "2": "furious"}
    assert answered["usage"]["input_tokens"] == expected.metrics.prompt_tokens


def test_the_http_backend_reads_the_decisions_of_this_server(model: ib.TextModel, address: str) -> None:
    questions: dict[str, Question] = {"urgent": ib.Noul("Is it urgent?"), "team": ib.Choice(["billing", "support"])}
    expected = model.decide(STATE, questions)
    with ib.load_model(f"{address}/v1", model="small") as remote:
        found = remote.decide(STATE, questions)
    assert found.answers == expected.answers, "the mass of the labels too"
    assert found.metrics.prompt_tokens == expected.metrics.prompt_tokens


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"questions": {"a": {"type": "noul", "instructions": "x"}}}, "state"),
        ({"state": "x"}, "questions"),
        ({"state": "x", "questions": {"a": {"type": "noul"}}}, "questions.a"),
        ({"state": "x", "questions": {"a": {"type": "choice", "criteria": [1]}}}, "questions.a"),
        ({"state": "x", "questions": {"a": {"type": "score", "criteria": ["x", None]}}}, "questions.a"),
        ({"state": "x", "questions": {"a": {"type": "noul", "instructions": "x", "colour": "red"}}}, "questions.a"),
        ({"state": "x", "questions": {"a": "is it?"}}, "questions.a"),
        ({"state": "x", "questions": {"": {"type": "noul", "instructions": "x"}}}, "questions"),
        ([], ""),
    ],
)
def test_system_one_names_the_field_that_is_wrong(address: str, body: Any, place: str) -> None:
    answer = httpx2.post(f"{address}/v1/systemone", json=body)
    assert answer.status_code == 422
    (detail,) = answer.json()["detail"]
    assert detail["loc"] == ["body", *filter(None, place.split("."))]
    assert detail["msg"]


def test_a_model_without_probabilities_is_refused(address: str) -> None:
    answer = asking(address, {"a": {"type": "noul", "instructions": "x"}}, model="tiny")
    assert answer.status_code == 400
    assert answer.json()["detail"]["error_type"] == "unsupported"


def test_a_state_that_is_too_long(address: str) -> None:
    body = {"state": "word " * 3000, "questions": {"a": {"type": "noul", "instructions": "x"}}}
    answer = httpx2.post(f"{address}/v1/systemone", json=body, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["detail"]["error_type"] == "context_length_exceeded"


def test_a_client_that_disconnects_ends_its_operation(model: ib.TextModel, address: str) -> None:
    """Of 200 long questions, those that have not begun are not evaluated."""
    question = {"type": "noul", "instructions": "Is it? " + "Really? " * 200}
    body = json.dumps(
        {"state": STATE, "questions": {str(n): question | {"criteria": {"true": str(n)}} for n in range(200)}}
    )
    before = model.stats().operations  # type: ignore[attr-defined]
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /v1/systemone HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body.encode())
        while model.stats().operations == before:  # type: ignore[attr-defined]
            time.sleep(0.01)
    assert asking(address, {"a": {"type": "noul", "instructions": "Is it?"}}, model="small").status_code == 200
    assert model.stats().operations - before < 150  # type: ignore[attr-defined]


# ---------------------------------------------------------------- OpenAI


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_decisions(model: ib.TextModel, client: openai.OpenAI) -> None:
    found = client.decisions.create(
        model="small",
        input=STATE,
        questions=[
            {"type": "predicate", "name": "urgent", "instructions": "The message is urgent."},
            {
                "type": "choice",
                "instructions": "Is the customer angry?",
                "choices": [{"value": True, "description": "angry"}, {"value": False}, {"value": "unknown"}],
            },
            {
                "type": "score",
                "instructions": [{"type": "input_text", "text": "How angry?"}],
                "levels": [{"label": "calm"}, {"label": "annoyed", "description": "a little"}, {"label": "furious"}],
            },
        ],
        prompt_cache_key="k",
    )
    expected = model.decide(
        STATE,
        {
            "a": ib.Noul("Is this true? The message is urgent."),
            "b": ib.Choice({"true": "angry", "false": None, "unknown": None}, "Is the customer angry?"),
            "c": ib.Score(["calm", "annoyed: a little", "furious"], "How angry?"),
        },
    )
    predicate, choice, score = found.answers
    assert predicate.type == "predicate"
    assert (predicate.name, predicate.probability) == ("urgent", expected.nouls["a"].noul)
    assert choice.type == "choice"
    assert [one.value for one in choice.probabilities] == [True, False, "unknown"]
    assert [one.probability for one in choice.probabilities] == list(expected["b"].probabilities.values())
    assert choice.choice == {"true": True, "false": False}.get(expected.choices["b"].choice, "unknown")
    assert score.type == "score"
    assert [(one.label, one.value) for one in score.probabilities] == [("calm", 0), ("annoyed", 1), ("furious", 2)]
    assert score.score == expected.scores["c"].score
    assert found.usage.input_tokens == expected.metrics.prompt_tokens
    assert found.usage.total_tokens == found.usage.input_tokens


def test_openai_decisions_about_messages_and_calls(client: openai.OpenAI) -> None:
    turns: list[Any] = [
        {"role": "user", "content": [{"type": "input_json", "data": {"subject": "Help!"}}]},
        {"type": "function_call", "name": "look_up", "arguments": "{}", "call_id": "1"},
        {"type": "function_call_output", "output": "nothing", "call_id": "1"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Sorry."}]},
    ]
    found = client.decisions.create(
        model="small",
        input=turns,
        questions=[{"type": "predicate", "instructions": "The customer was helped."}],
    )
    (answer,) = found.answers
    assert answer.type == "predicate"
    assert 0 <= answer.probability <= 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": 3}, "input"),
        ({"input": [{"role": "nobody", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "content[0].type"),
        ({"questions": []}, "questions"),
        ({"questions": [{"type": "guess", "instructions": "x"}]}, "questions[0].type"),
        ({"questions": [{"type": "predicate", "instructions": " "}]}, "questions[0]"),
        ({"questions": [{"type": "predicate", "instructions": "x", "colour": 1}]}, "questions[0].colour"),
        (
            {"questions": [{"type": "choice", "instructions": "x", "choices": [{"value": True}, {"value": "true"}]}]},
            "questions[0].choices[1].value",
        ),
        ({"questions": [{"type": "score", "instructions": "x", "levels": [{"label": "x"}]}]}, "questions[0]"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_openai_decisions_name_the_field_that_is_wrong(address: str, body: Any, param: str) -> None:
    right = {"model": "small", "input": "x", "questions": [{"type": "predicate", "instructions": "x"}]}
    answer = httpx2.post(f"{address}/v1/decisions", json=right | body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].endswith(param)
