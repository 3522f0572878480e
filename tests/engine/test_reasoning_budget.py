# SPDX-License-Identifier: Apache-2.0
"""`reasoning_budget` on the real small model, whose chat template is made to reason, and on scripted tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference_bridge import LoadConfig, TextModel, UnsupportedError
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
from inference_bridge.engine.reasoning_budget import ReasoningBudget, ReasoningTags

from ..parts.models.tiny_gguf import write_llama

TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
QUESTION = [{"role": "user", "content": "Write a sentence about cats."}]


def load(path: Path, template: str = "") -> TextModel:
    return LlamaCppBackend().load_model(str(path), LoadConfig(context_length=512, chat_template=template))


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Iterator[TextModel]:
    """Its prompts end inside reasoning."""
    with load(demo_model_path, TURN + "{% if false %}</think>{% endif %}<think>\n") as loaded:
        yield loaded


def test_reasoning_ends_with_its_budget_and_the_answer_follows(model: TextModel) -> None:
    assert "reasoning_budget" in model.options
    free = model.chat(QUESTION, max_tokens=60).result()
    thought = [token.text for token in free.tokens if token.kind == "reasoning"]
    assert len(thought) > 12
    for budget in (0, 1, 7, 12):
        result = model.chat(QUESTION, max_tokens=60, min_tokens=40, reasoning_budget=budget).result()
        assert result.reasoning.split() == "".join(thought[:budget]).split()
        assert result.text, "the minimum keeps this small model from ending right behind the tag"
    assert model.chat(QUESTION, max_tokens=60, reasoning_budget=1000).result().reasoning == free.reasoning


def test_a_seed_makes_it_repeatable(model: TextModel) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_tokens": 40, "reasoning_budget": 9}
    first, again = (model.chat(QUESTION, **options).result() for _ in range(2))
    assert (first.reasoning, first.text) == (again.reasoning, again.text)
    assert model.count_tokens(first.reasoning) <= 10


def test_a_schema_is_held_behind_it(model: TextModel) -> None:
    schema = {"type": "object", "properties": {"cat": {"type": "string", "maxLength": 9}}, "required": ["cat"]}
    result = model.chat(QUESTION, json_schema=schema, reasoning_budget=6, max_tokens=60).result()
    assert result.finish_reason == "stop"
    assert result.text.startswith('{"cat"')
    assert 0 < model.count_tokens(result.reasoning) <= 7


def test_tokens_that_the_tokenizer_adds_are_not_part_of_the_tag(tmp_path: Path) -> None:
    """This one begins prompts with BOS, and a tag is several tokens."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if false %}</think>{% endif %}<think>"
    with load(write_llama(tmp_path / "tiny.gguf", template=template), template) as tiny:
        result = tiny.chat(QUESTION, max_tokens=40, reasoning_budget=5).result()
        ids = [token.id for token in result.tokens]
        assert bytes(id - 3 for id in ids[5:13] if id is not None) == b"</think>"
        assert result.text


def test_a_model_that_does_not_reason_refuses_it(demo_model_path: Path) -> None:
    with load(demo_model_path) as plain, pytest.raises(UnsupportedError) as refused:
        plain.chat(QUESTION, reasoning_budget=3)
    assert refused.value.feature == "reasoning_budget"


def test_a_raw_prompt_has_no_reasoning_budget(model: TextModel) -> None:
    with pytest.raises(ValueError, match="reasoning_budget"):
        model.generate("x", reasoning_budget=3)


# ---------------------------------------------------------------- scripted

PIECES = [b"<think>", b"</think>", b"a", b" ", b"<", b"/think>", b"<think", b">"]
TAGS = ReasoningTags("<think>", "</think>", "</think>")


def run(script: list[int], budget: int, closing: list[int], *, begun: bool = False) -> list[int]:
    """The output if the model would generate `script`: each token of the script, unless another one is forced."""
    constraint = ReasoningBudget(budget, TAGS, [0], closing, PIECES.__getitem__, begun, None)
    said = []
    for wanted in script:
        logits = np.zeros(len(PIECES), np.float32)
        logits[wanted] = 1.0
        constraint.mask(logits)
        token = int(logits.argmax())
        assert constraint.fits(token)
        constraint.accept(token)
        said.append(token)
    return said


@pytest.mark.parametrize(
    ("script", "budget", "closing", "begun", "expected"),
    [
        ([0, 2, 2, 2, 2], 2, [1], False, [0, 2, 2, 1, 2]),
        ([2, 2, 2, 2], 2, [4, 5], True, [2, 2, 4, 5]),
        ([2, 0, 2, 2, 2], 1, [1], False, [2, 0, 2, 2, 2]),  # an answer that shows the tag
        ([3, 0, 2, 2], 1, [1], False, [3, 0, 2, 1]),
        ([6, 7, 2, 2], 1, [1], False, [6, 7, 2, 1]),
        ([0, 2, 1, 0, 2, 2], 2, [1], False, [0, 2, 1, 1, 2, 2]),  # the rest of the budget, after the tokens of the tag
        ([0, 2, 4, 5, 2, 2], 5, [1], False, [0, 2, 4, 5, 2, 2]),
    ],
)
def test_tags_are_recognised_with_any_tokenization(
    script: list[int], budget: int, closing: list[int], begun: bool, expected: list[int]
) -> None:
    assert run(script, budget, closing, begun=begun) == expected


def test_a_budget_of_zero_prevents_reasoning() -> None:
    said = run([0, 2, 2], 0, [1])
    assert 0 not in said
