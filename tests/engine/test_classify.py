# SPDX-License-Identifier: Apache-2.0
"""Classification on the real small model, and the evaluations that its plan saves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inference_bridge import ContextLengthExceededError, LoadConfig, TextModel, UnsupportedError
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
from inference_bridge.engine.classify import plan

# What reusing a prefix may change in a logit: the engine's order of floating-point
# operations, seen through a softmax.
TOLERANCE = 0.05


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Iterator[TextModel]:
    with LlamaCppBackend().load_model(str(demo_model_path), LoadConfig(context_length=512)) as loaded:
        yield loaded


REVIEW = 'Say if a review is positive or negative.\nReview: "{}"\nThe review is'


def test_the_likeliest_token(model: TextModel) -> None:
    prompts = ["The capital of France is", "The capital of Germany is", "One, two, three,"]
    results = model.classify(prompts)
    expected = [next(model.generate(prompt, max_tokens=1)) for prompt in prompts]
    assert [(result.token.text, result.token.id) for result in results] == [(t.text, t.id) for t in expected]
    assert results[0].token.text == " Paris"
    assert results[0].label is None
    assert results[0].logits is None


def test_logits(model: TextModel) -> None:
    (result,) = model.classify(["The capital of France is"], return_logits=True, logprobs=3)
    assert result.logits is not None
    logits = np.asarray(result.logits, dtype=np.float64)
    assert logits.shape == (model.info.vocab_size,)
    assert int(logits.argmax()) == result.token.id
    expected = logits - np.log(np.exp(logits).sum())
    assert result.token.logprob == pytest.approx(expected.max())
    assert [top.logprob for top in result.token.top_logprobs] == pytest.approx(sorted(expected)[-1:-4:-1])


def test_labels_of_one_token_and_more(model: TextModel) -> None:
    labels = [" positive", " negative", " neither of these"]
    good, bad = model.classify([REVIEW.format("I love it!"), REVIEW.format("I hate it!")], labels=labels)
    for result in (good, bad):
        assert result.scores is not None
        assert list(result.scores) == labels
        assert sum(result.scores.values()) == pytest.approx(1)
        assert result.label == max(labels, key=lambda label: result.scores[label])  # type: ignore[index]
    assert good.scores is not None
    assert bad.scores is not None
    assert good.scores[" positive"] / good.scores[" negative"] > bad.scores[" positive"] / bad.scores[" negative"]


def test_scores_are_the_labels_probabilities(model: TextModel) -> None:
    """Compared with the chain rule; each factor comes from a separate evaluation."""
    prompt, labels = "The colour of the sky is", [" blue", " deep dark blue"]

    def probability(label: str) -> float:
        text, total = prompt, 0.0
        for piece in label.split(" ")[1:]:
            (result,) = model.classify([text], return_logits=True)
            assert result.logits is not None
            logits = np.asarray(result.logits, dtype=np.float64)
            (token,) = model._tokenizer.encode(" " + piece, special=False)  # type: ignore[attr-defined]
            total += float(logits[token] - np.log(np.exp(logits).sum()))
            text += " " + piece
        return math.exp(total)

    own = [probability(label) for label in labels]
    (result,) = model.classify([prompt], labels=labels)
    assert result.scores is not None
    assert [result.scores[label] for label in labels] == pytest.approx([p / sum(own) for p in own], rel=TOLERANCE)


async def test_async(model: TextModel) -> None:
    labels = [" blue", " red"]
    prompts = ["The sky is", "Blood is"]
    again = model.classify(prompts, labels=labels)
    results = await model.aclassify(prompts, labels=labels)
    assert [result.label for result in results] == [result.label for result in again]


def test_a_shared_prefix_is_evaluated_once(model: TextModel) -> None:
    before = model.stats()  # type: ignore[attr-defined]
    prompts = [REVIEW.format(f"It is number {n}.") for n in range(12)]
    model.classify(prompts)
    after = model.stats()  # type: ignore[attr-defined]
    tokens = sum(model.count_tokens(prompt) for prompt in prompts)
    evaluated = after.prompt_tokens - before.prompt_tokens - (after.cached_tokens - before.cached_tokens)
    assert after.operations - before.operations == 12
    assert evaluated < tokens / 2


def test_wrong_input(model: TextModel) -> None:
    with pytest.raises(TypeError, match="prompts"):
        model.classify("one string")
    with pytest.raises(TypeError, match=r"prompts\[1\]"):
        model.classify(["a", 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="labels is empty"):
        model.classify(["a"], labels=[])
    with pytest.raises(ValueError, match="adds no token"):
        model.classify(["a"], labels=["", "b"])
    for labels in (None, [" good", " bad"]):
        with pytest.raises(ValueError, match="a prompt is empty, and this model begins a text with no token"):
            model.classify(["It is", ""], labels=labels)
    with pytest.raises(UnsupportedError, match="top_k"):
        model.classify(["a"], top_k=3)
    with pytest.raises(ContextLengthExceededError):
        model.classify(["fine", "word " * 600])
    assert model.classify([]) == []


# ---------------------------------------------------------------- the plan


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_equal_prompts_once() -> None:
    made = plan(["ab", "ab", "ac"], None, letters, top=0, keep=False)
    assert [evaluation.tokens for evaluation in made.order()] == [(97, 98), (97, 99)]


def test_prompts_with_a_common_prefix_are_adjacent_and_share_it() -> None:
    made = plan(["x", "y"], [["ab", "ac", "d"]] * 2, letters, top=0, keep=False)
    x, y, a = ord("x"), ord("y"), ord("a")
    assert [evaluation.tokens for evaluation in made.order()] == [(x,), (x, a), (y,), (y, a)]
    assert made.evaluations[(x,)].wanted == {a, ord("d")}
    assert made.evaluations[(x, a)].wanted == {ord("b"), ord("c")}


def test_a_tokenizer_that_joins_prompt_and_label() -> None:
    def joining(text: str) -> list[int]:
        return letters(text.replace("ab", "Z"))

    made = plan(["xa"], [["b", "c"]], joining, top=0, keep=False)
    x, a = ord("x"), ord("a")
    assert made.evaluations[(x,)].wanted == {ord("Z"), a}
    assert made.evaluations[(x, a)].wanted == {ord("c")}


def scored(labels: list[str], probabilities: dict[str, dict[str, float]]) -> tuple[dict[str, float], float]:
    """The scores and the mass of labels behind "x", from the probability of each letter behind each text."""
    made = plan(["x"], [labels], letters, top=0, keep=False)
    for evaluation in made.order():
        known = probabilities["".join(map(chr, evaluation.tokens))]
        evaluation.best = ord("a")
        evaluation.logprobs = {token: math.log(known[chr(token)]) for token in evaluation.wanted}
    (result,) = made.results(chr)
    assert result.scores is not None
    assert result.mass is not None
    return dict(result.scores), result.mass


def test_the_score_of_a_label_excludes_longer_labels_that_begin_with_it() -> None:
    following = {"x": {"a": 0.5, "d": 0.1}, "xa": {"b": 0.6}, "xab": {"c": 0.5}}
    scores, mass = scored(["a", "ab", "abc", "d"], following)
    # "a" and no b: 0.2; "ab" and no c: 0.15; "abc": 0.15; "d": 0.1
    assert mass == pytest.approx(0.6)
    assert scores == pytest.approx({"a": 0.2 / 0.6, "ab": 0.15 / 0.6, "abc": 0.15 / 0.6, "d": 0.1 / 0.6})


def test_the_mass_of_labels_is_at_most_one() -> None:
    scores, mass = scored(["a", "ab"], {"x": {"a": 1.0}, "xa": {"b": 1.0}})
    assert mass == 1.0
    assert scores == {"a": 0.0, "ab": 1.0}


def test_labels_of_one_prompt_are_not_those_of_another() -> None:
    made = plan(["x", "y"], [["ab"], ["c"]], letters, top=0, keep=False)
    assert made.evaluations[(ord("x"),)].wanted == {ord("a")}
    assert made.evaluations[(ord("y"),)].wanted == {ord("c")}


def test_the_mass_is_the_probability_of_all_labels_together(model: TextModel) -> None:
    (result,) = model.classify(["The capital of France is"], labels=[" Paris", " London"], return_logits=True)
    assert result.logits is not None
    logits = np.asarray(result.logits, dtype=np.float64)
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    tokens = [model._tokenizer.encode(label, special=False)[0] for label in (" Paris", " London")]  # type: ignore[attr-defined]
    assert result.mass == pytest.approx(sum(probabilities[token] for token in tokens), rel=1e-4)
