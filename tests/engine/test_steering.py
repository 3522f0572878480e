# SPDX-License-Identifier: Apache-2.0
"""logit_bias and min_tokens on the real small model, and their effect on logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference_bridge import LoadConfig, TextModel, TokenStream, UnsupportedError, load_model
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
from inference_bridge.engine.steering import EndTokens, Steering

from ..parts.servers.processes import llama_cpp_server, llama_server

PROMPT = "The capital of France is"
QUESTION = [{"role": "user", "content": "Say hi."}]


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Iterator[TextModel]:
    with LlamaCppBackend().load_model(str(demo_model_path), LoadConfig(context_length=512)) as loaded:
        yield loaded


def encoded(model: TextModel, text: str) -> list[int]:
    tokens: list[int] = model._tokenizer.encode(text, special=False)  # type: ignore[attr-defined]
    return tokens


def ids(model: TextModel, prompt: str = PROMPT, **options: Any) -> list[int | None]:
    return [token.id for token in model.generate(prompt, **{"max_tokens": 6, **options})]


def test_a_bias_forces_or_excludes_a_token(model: TextModel) -> None:
    plain = ids(model)
    assert ids(model, logit_bias={7: 1000.0}) == [7] * 6
    assert ids(model, logit_bias={7: 1000.0}, temperature=1.0, seed=3) == [7] * 6
    each: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 3}, {"repeat_penalty": 1.2}]
    for options in each:
        assert plain[0] not in ids(model, logit_bias={plain[0]: -1000.0}, **options)
    assert ids(model, logit_bias={str(plain[0]): 0.0}) == plain


def test_log_probabilities_are_those_before_the_bias(model: TextModel) -> None:
    (plain,) = model.generate(PROMPT, max_tokens=1, logprobs=2)
    (biased,) = model.generate(PROMPT, max_tokens=1, logprobs=2, logit_bias={7: 1000.0})
    assert biased.id == 7
    assert biased.logprob is not None
    assert biased.logprob < -1
    assert [top.id for top in biased.top_logprobs] == [top.id for top in plain.top_logprobs]
    assert biased.top_logprobs[0].logprob == pytest.approx(plain.logprob, abs=0.05)


def test_a_bias_works_within_a_grammar(model: TextModel) -> None:
    """Every first token of the more likely answer is excluded, so that the other answer is chosen."""
    choices = ["Paris", "London"]
    likely = model.generate(PROMPT, choices=choices, max_tokens=8).text()
    (other,) = {*choices} - {likely}
    beginnings = [encoded(model, likely[:end])[0] for end in range(1, len(likely) + 1)]
    stream = model.generate(PROMPT, choices=choices, logit_bias=dict.fromkeys(beginnings, -1000.0), max_tokens=8)
    assert stream.text() == other
    assert stream.finish_reason == "stop"


def test_an_answer_has_a_minimum_of_tokens(model: TextModel) -> None:
    short = model.chat(QUESTION, max_tokens=100).result()
    assert short.finish_reason == "stop"
    count = short.metrics.generated_tokens
    longer = model.chat(QUESTION, max_tokens=count + 20, min_tokens=count + 10).result()
    assert longer.metrics.generated_tokens >= count + 10
    assert longer.text.startswith(short.text)
    same = model.chat(QUESTION, max_tokens=100, min_tokens=count - 1).result()
    assert same.text == short.text


def test_a_minimum_at_the_maximum_is_exact(model: TextModel) -> None:
    result = model.chat(QUESTION, max_tokens=40, min_tokens=40).result()
    assert result.metrics.generated_tokens == 40
    assert result.finish_reason == "length"


@pytest.mark.parametrize(
    "options",
    [
        {"min_tokens": 5, "max_tokens": 4},
        {"min_tokens": 257},  # more than the max_tokens that holds where none is set
        {"min_tokens": 2, "regex": "a"},
        {"logit_bias": {10**6: 1.0}},
        {"min_tokens": 2, "stop_tokens": [10**6]},
    ],
    ids=str,
)
def test_impossible_values_are_refused_by_the_call(model: TextModel, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="min_tokens|token"):
        model.generate(PROMPT, **options)


def test_the_effect_on_logits() -> None:
    seen: list[int] = []

    def is_end(token: int) -> bool:
        seen.append(token)
        return token == 4

    ends = EndTokens(is_end)
    steering = Steering({1: 2.5, 3: -1.0}, 2, ends, frozenset({2}), None)
    minus = -np.inf
    expected = [[0, 2.5, minus, -1, minus], [0, 2.5, minus, -1, minus], [0, 2.5, 0, -1, 0]]
    for values in expected:
        logits = np.zeros(5, np.float32)
        steering.mask(logits)
        assert logits.tolist() == values
        assert (steering.finished, steering.complete, steering.shortened, steering.fits(1)) == (
            False,
            False,
            False,
            True,
        )
        steering.exclude(1, logits)
        assert logits.tolist() == values
        steering.accept(0)
    assert seen == list(range(5)), "the end tokens are looked for once"


# ---------------------------------------------------------------- servers


@pytest.mark.parametrize("server", [llama_server, llama_cpp_server], ids=["llama_server", "llama_cpp_server"])
def test_a_bias_on_servers(demo_model_path: Path, model: TextModel, server: Any) -> None:
    with server(demo_model_path) as address, load_model(address) as served:
        asks: list[Callable[..., TokenStream]] = [partial(served.generate, PROMPT), partial(served.chat, QUESTION)]
        for ask in asks:
            plain = ask(max_tokens=1).text()
            first = encoded(model, plain)[0]
            assert ask(max_tokens=1, logit_bias={first: -100.0}).text() != plain
        with pytest.raises(UnsupportedError, match="min_tokens"):
            served.generate(PROMPT, min_tokens=3)
