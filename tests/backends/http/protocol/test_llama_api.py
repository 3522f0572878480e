# SPDX-License-Identifier: Apache-2.0
"""Requests to /completion, and parsing of the answers, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from inference_bridge import GenerateConfig, Request, ServerError, Token, TopLogprob
from inference_bridge.backends.http.protocol.llama_api import CompletionReader, completion

from ....parts.servers.fault_server import last, piece, tokens_of

ALWAYS = {"stream": True, "cache_prompt": True, "return_tokens": True}


def test_unset_options_are_not_sent() -> None:
    assert completion("hi", GenerateConfig()) == {"prompt": "hi", **ALWAYS}


def test_every_option() -> None:
    config = GenerateConfig(
        max_tokens=-1,
        temperature=0.5,
        top_k=0,
        top_p=0.0,
        min_p=0.1,
        repeat_penalty=0.0,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        stop="x",
        seed=2**32 - 1,
        logprobs=3,
        json_schema={"type": "object"},
    )
    assert completion("hi", config) == {
        "prompt": "hi",
        **ALWAYS,
        "n_predict": -1,
        "temperature": 0.5,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.1,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "timings_per_token": True,  # stop strings are looked for here
        "seed": 0,
        "n_probs": 3,
        "json_schema": {"type": "object"},
    }


def answer(*events: dict[str, Any], **options: Any) -> tuple[list[Token], Request]:
    request = Request("generate", GenerateConfig(**options))
    return tokens_of(CompletionReader(request), events), request


def test_tokens() -> None:
    end = last(3, cache_n=4, prompt_n=6, prompt_ms=500, predicted_n=3, predicted_ms=1000)
    tokens, request = answer(piece("a", 7, 1), piece("b", 8, 2), end)
    assert tokens == [Token("a", 7), Token("b", 8)]
    assert request.finish_reason == "stop"
    assert (request.metrics.prompt_tokens, request.metrics.cached_tokens) == (10, 4)
    assert request.metrics.generated_tokens == 3


@pytest.mark.parametrize(("kind", "reason"), [("eos", "stop"), ("word", "stop"), ("limit", "length")])
def test_finish_reasons(kind: str, reason: str) -> None:
    assert answer(piece("a", 7, 1), last(1, kind))[1].finish_reason == reason


def test_a_character_of_several_tokens_has_as_many() -> None:
    # The server waits for the whole character, and then gives the last token's id only.
    tokens, _ = answer(piece("\U0001f389", 7, 3), piece("a", 8, 4), last(6, "limit"))
    assert tokens == [Token(""), Token(""), Token("\U0001f389", 7), Token("a", 8), Token(""), Token("\ufffd")]


def test_log_probabilities() -> None:
    listed = [{"id": 7, "token": "a", "bytes": [97], "logprob": -0.1}, {"id": 8, "token": "b", "logprob": -2}]
    entry = {"id": 7, "token": "a", "logprob": -0.1, "top_logprobs": listed}
    tokens, _ = answer(piece("a", 7, 1) | {"completion_probabilities": [entry]}, last(1), logprobs=2)
    assert tokens == [Token("a", 7, -0.1, (TopLogprob("a", 7, -0.1), TopLogprob("b", 8, -2.0)))]


def test_stop_tokens_are_counted_and_not_shown() -> None:
    tokens, request = answer(piece("a", 7, 1), piece("b", 9, 2), piece("c", 8, 3), stop_tokens=[9])
    assert tokens == [Token("a", 7)]
    assert request.finish_reason == "stop"
    assert request.metrics.generated_tokens == 2


def test_stop_strings_never_show() -> None:
    tokens, request = answer(piece("Hello E", 1, 1), piece("N", 2, 2), piece("D.", 3, 3), stop=["END"])
    assert "".join(token.text for token in tokens) == "Hello "
    assert request.finish_reason == "stop"
    tokens, _ = answer(piece("Hello E", 1, 1), piece("N", 2, 2), last(2), stop=["END"])
    assert tokens == [Token("Hello E", 1), Token("N", 2)]


def test_an_answer_without_an_end() -> None:
    with pytest.raises(ServerError, match="broke off"):
        answer(piece("a", 7, 1))
