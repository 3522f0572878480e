# SPDX-License-Identifier: Apache-2.0
"""Questions and answers, and how a model is asked. What models answer is tested beside the backends."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from inference_bridge import (
    Attachment,
    Choice,
    ChoiceAnswer,
    ClassifyResult,
    Decision,
    GenerateConfig,
    GenerationTimeoutError,
    Message,
    Noul,
    NoulAnswer,
    Score,
    ScoreAnswer,
    Token,
    ToolCall,
    UnsupportedError,
)
from inference_bridge.decisions import Question, confidence, question
from inference_bridge.decisions.deciding import Deciding

from ..parts.models.tiny import Words


def asked(state: Any, **questions: Any) -> Deciding:
    return Deciding(state, questions, GenerateConfig(), "test")


# ---------------------------------------------------------------- questions


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Noul(""), ValueError),
        (lambda: Noul("  "), ValueError),
        (lambda: Noul({}), ValueError),
        (lambda: Noul(3), TypeError),  # type: ignore[arg-type]
        (lambda: Noul(b"x"), TypeError),
        (lambda: Noul("x", {"maybe": "y"}), ValueError),
        (lambda: Noul("x", "y"), TypeError),  # type: ignore[arg-type]
        (lambda: Choice({}), ValueError),
        (lambda: Choice([]), ValueError),
        (lambda: Choice("ab"), TypeError),
        (lambda: Choice([1]), TypeError),  # type: ignore[list-item]
        (lambda: Choice({" ": None}), ValueError),
        (lambda: Choice(["a", "a"]), ValueError),
        (lambda: Score(["only one"]), ValueError),
        (lambda: Score("ab"), TypeError),
        (lambda: Score({"a": 1, "b": 2}), TypeError),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_question_is_refused_by_its_constructor(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


def test_questions_are_read_from_json() -> None:
    assert question({"type": "noul", "instructions": "x", "criteria": {"true": "y"}}) == Noul("x", {"true": "y"})
    assert question({"type": "choice", "criteria": {"a": None}}) == Choice({"a": None})
    assert question({"type": "score", "instructions": ["x"], "criteria": ["a", "b"]}) == Score(["a", "b"], ["x"])
    noul = Noul("x")
    assert question(noul) is noul


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("x", TypeError),
        ({"instructions": "x"}, ValueError),
        ({"type": "box", "instructions": "x"}, ValueError),
        ({"type": "noul"}, ValueError),
        ({"type": "choice", "instructions": "x"}, ValueError),
        ({"type": "noul", "instruction": "x"}, ValueError),
    ],
)
def test_the_error_for_an_invalid_question_has_its_name(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="'the name'"):
        asked("state", **{"the name": value})


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [([1.0], 1.0), ([0.5, 0.5], 0.0), ([1.0, 0.0], 1.0), ([0.8, 0.2], 0.6), ([0.5, 0.25, 0.25], 0.25), ([0.25] * 4, 0)],
)
def test_confidence_is_how_far_the_likeliest_is_above_chance(probabilities: Sequence[float], expected: float) -> None:
    assert confidence(dict(enumerate(probabilities))) == pytest.approx(expected)


def test_answers_by_their_types() -> None:
    noul, choice = NoulAnswer(0.75, 0.5), ChoiceAnswer({"a": 0.2, "b": 0.4, "c": 0.4})
    score = ScoreAnswer({0: 0.25, 1: 0.25, 2: 0.5}, {0: "x", 1: "y", 2: "z"})
    decision = Decision({"n": noul, "c": choice, "s": score})
    assert (decision.nouls, decision.choices, decision.scores) == ({"n": noul}, {"c": choice}, {"s": score})
    assert decision["n"] is noul
    assert noul.probabilities == {"true": 0.75, "false": 0.25}
    assert noul.confidence == pytest.approx(0.5)
    assert choice.choice == "b"  # the first of equally likely ones
    assert score.score == pytest.approx(1.25)
    assert score.confidence == pytest.approx(0.25)


# ---------------------------------------------------------------- how the model is asked


def test_the_state_comes_first_and_the_same_for_all() -> None:
    work = asked("THE STATE", a=Noul("A?"), b=Choice({"x": "why", "y": None}), c=Score(["low", "high"]))
    assert all(ask.text.startswith("THE STATE\n\n") for ask in work.asks)
    assert [ask.labels for ask in work.asks] == [("Yes", "No"), ("x", "y"), ("0", "1")]
    assert "x: why" in work.asks[1].text
    assert "1: high" in work.asks[2].text


def test_the_names_of_questions_are_not_shown() -> None:
    (ask,) = asked("x", a_secret_name=Noul("A?", {"true": "yea", "false": {"not": ["so"]}})).asks
    assert "secret" not in ask.text
    assert "yea" in ask.text
    assert '{"not": ["so"]}' in ask.text


def test_messages_are_shown_as_json_wherever_they_stand() -> None:
    call = Message("assistant", "", tool_calls=(ToolCall("1", "f", {"x": 1}),))
    messages = [Message("user", "Grüße"), call]
    plain = [{"role": "user", "content": "Grüße"}, call.to_dict()]
    for state, same in ((messages, plain), ({"chat": messages, "n": None}, {"chat": plain, "n": None})):
        assert asked(state, a=Noul("A?")).asks == asked(same, a=Noul("A?")).asks
        assert "Grüße" in asked(state, a=Noul("A?")).asks[0].text


@pytest.mark.parametrize("state", [object(), b"x", {"a": object()}, [b"x"]])
def test_a_state_that_json_can_not_hold(state: Any) -> None:
    with pytest.raises(TypeError):
        asked(state, a=Noul("A?"))


def test_a_state_of_numbers_that_json_has_not_or_that_is_too_deep() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    circle: dict[str, Any] = {}
    circle["again"] = circle
    for state in ({"a": math.nan}, deep, circle):
        with pytest.raises(ValueError, match="state"):
            asked(state, a=Noul("A?"))


@pytest.mark.parametrize(
    "state",
    [
        [Message("user", ["x", Attachment("image/png", b"x")])],
        {"deep": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}],
        [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}],
        [{"type": "file", "file_id": "1"}],
    ],
)
def test_attachments_are_refused(state: Any) -> None:
    with pytest.raises(UnsupportedError):
        asked(state, a=Noul("A?"))


def test_values_about_media_are_not_attachments() -> None:
    work = asked({"type": "video", "title": "A day"}, a=Choice({"type": "image", "url": None, "data": "video"}))
    assert work.state == {"type": "video", "title": "A day"}
    assert work.asks[0].labels == ("type", "url", "data")


# ---------------------------------------------------------------- through classify


class Scores(Words):
    """A model whose `classify` gives the first label the highest score."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[list[str], list[str], float | None]] = []

    def classify(
        self,
        prompts: Sequence[str],
        config: Any = None,
        *,
        labels: Sequence[str] | None = None,
        **options: Any,
    ) -> list[ClassifyResult]:
        assert labels is not None
        self.asked.append((list(prompts), list(labels), options.get("timeout")))
        scores = {label: 1.0 / (place + 1) for place, label in enumerate(labels)}
        total = sum(scores.values())
        return [ClassifyResult(Token(""), None, labels[0], {k: v / total for k, v in scores.items()}) for _ in prompts]


@pytest.fixture
def model() -> Iterator[Scores]:
    with Scores() as made:
        yield made


QUESTIONS: dict[str, Question] = {"a": Noul("A?"), "b": Score(["x", "y", "z"]), "c": Noul("C?"), "d": Choice(["one"])}


def test_questions_of_the_same_labels_are_one_call(model: Scores) -> None:
    decision = model.decide("state", QUESTIONS)
    assert [labels for _, labels, _ in model.asked] == [[" Yes", " No"], [" 0", " 1", " 2"], [" one"]]
    assert list(decision.answers) == ["a", "b", "c", "d"]
    assert decision.choices["d"] == ChoiceAnswer({"one": 1.0})
    assert decision.nouls["a"].mass is None
    assert asyncio.run(model.adecide("state", QUESTIONS)).answers == decision.answers
    assert model.metrics.total_seconds >= 0


def test_the_timeout_is_that_of_the_whole_call(model: Scores) -> None:
    model.decide("state", QUESTIONS, timeout=60)
    left = [timeout for _, _, timeout in model.asked]
    assert all(one is not None and 0 < one <= 60 for one in left)


def test_a_timeout_of_one_part_names_the_timeout_of_the_call(model: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*arguments: Any, **options: Any) -> Any:
        raise GenerationTimeoutError("not finished within timeout=0.01 s")

    monkeypatch.setattr(model, "classify", late)
    monkeypatch.setattr(model, "aclassify", late)
    with pytest.raises(GenerationTimeoutError, match="timeout=60.0 s"):
        model.decide("state", QUESTIONS, timeout=60)
    with pytest.raises(GenerationTimeoutError, match="timeout=60.0 s"):
        asyncio.run(model.adecide("state", QUESTIONS, timeout=60))


def test_a_model_without_probabilities_is_refused() -> None:
    with Words() as model:
        with pytest.raises(UnsupportedError, match="labels") as refused:
            model.decide("x", QUESTIONS)
        with pytest.raises(UnsupportedError, match="labels") as arefused:
            asyncio.run(model.adecide("x", QUESTIONS))
        assert refused.value.feature == arefused.value.feature == "decide"
        assert model.begun == 0


def test_what_an_option_of_decide_is_not(model: Scores) -> None:
    with pytest.raises(UnsupportedError, match="max_tokens"):
        model.decide("x", QUESTIONS, GenerateConfig(max_tokens=3))
    with pytest.raises(TypeError):
        model.decide("x", QUESTIONS, {"timeout": 3})  # type: ignore[arg-type]
    assert not model.asked
