# SPDX-License-Identifier: Apache-2.0
"""InferenceBridgeDecisions on the real small model."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

import langchain_inference_bridge
from inference_bridge import Noul as OwnNoul
from inference_bridge import UnsupportedError

from ...parts.models.tiny import Words

decisions = pytest.importorskip("langchain_core.decisions", reason="this langchain-core has no decision models")

STATE = "Production is down, and I want my money back!"
IMAGE = {"type": "image", "base64": "AAAA", "mime_type": "image/png"}


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Iterator[Any]:
    source = f"llama_cpp:{demo_model_path}"
    with langchain_inference_bridge.InferenceBridgeDecisions(model=source, context_length=512, threads=1) as made:
        yield made


def questions() -> dict[str, Any]:
    return {
        "urgent": decisions.Noul(instructions="Is it urgent?", criteria=decisions.NoulCriteria(true="today")),
        "team": decisions.Choice(instructions="Which team?", criteria={"billing": "payments", "support": None}),
        "anger": decisions.Score(instructions={"ask": "How angry?"}, criteria=["calm", "furious"]),
    }


def test_a_runnable_that_answers_typed_questions(model: Any) -> None:
    assert isinstance(model, decisions.BaseDecisionModel)
    request = {"state": STATE, "questions": questions()}
    response = model.invoke(request)
    assert isinstance(response, decisions.ClassifierResponse)
    own = model.load().decide(STATE, {name: asked.model_dump() for name, asked in questions().items()})
    assert response.nouls["urgent"].noul == pytest.approx(own.nouls["urgent"].noul, abs=0.05)
    assert response.choices["team"].choice in ("billing", "support")
    assert response.choices["team"].confidence == pytest.approx(own.choices["team"].confidence, abs=0.05)
    assert response.scores["anger"].legend == {0: "calm", 1: "furious"}
    assert sum(response.scores["anger"].probabilities.values()) == pytest.approx(1)
    assert response.usage["input_tokens"] > 0
    assert response.model == model.model
    later = asyncio.run(model.ainvoke(request))
    assert later.nouls["urgent"].noul == pytest.approx(own.nouls["urgent"].noul, abs=0.05)
    assert len(model.batch([request, request])) == 2


def test_messages_anywhere_in_the_state(model: Any) -> None:
    asked = {"urgent": questions()["urgent"]}
    for state in ([HumanMessage(STATE)], {"chat": [HumanMessage(STATE)], "number": 3}, HumanMessage(STATE)):
        assert 0 < model.invoke({"state": state, "questions": asked}).nouls["urgent"].noul < 1


@pytest.mark.parametrize("place", ["state", "message", "question", "box"])
def test_states_that_are_not_text_are_refused(model: Any, place: str) -> None:
    state: Any = {"picture": [IMAGE]} if place == "state" else STATE
    if place == "message":
        state = [HumanMessage([{"type": "text", "text": "x"}, IMAGE])]
    asked = {"urgent": questions()["urgent"]}
    if place == "question":
        asked["seen"] = decisions.Noul(instructions=[{"type": "text", "text": "Is it this?"}, IMAGE])
    if place == "box":
        asked["where"] = decisions.Box(instructions="the cat")
    with pytest.raises(UnsupportedError):
        model.invoke({"state": state, "questions": asked})


def test_a_model_without_probabilities_is_refused() -> None:
    with langchain_inference_bridge.InferenceBridgeDecisions(text_model=Words()) as made:
        with pytest.raises(UnsupportedError, match="decide"):
            made.invoke({"state": STATE, "questions": questions()})
        with pytest.raises(UnsupportedError, match="decide"):
            asyncio.run(made.ainvoke({"state": STATE, "questions": {"a": {"type": "noul", "instructions": "Is it?"}}}))  # type: ignore[dict-item]
    assert OwnNoul("Is it?").instructions == "Is it?"


def test_an_older_langchain_core_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain_core.decisions", None)
    monkeypatch.delitem(sys.modules, "langchain_inference_bridge.decisions", raising=False)
    monkeypatch.delitem(vars(langchain_inference_bridge), "InferenceBridgeDecisions", raising=False)
    with pytest.raises(ImportError, match="langchain-core"):
        langchain_inference_bridge.InferenceBridgeDecisions  # noqa: B018
