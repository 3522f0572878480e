# SPDX-License-Identifier: Apache-2.0
"""Classification on servers that return only the most likely tokens."""

from __future__ import annotations

import math
import socket
from typing import Any

import pytest

from inference_bridge import ServerError, Token, TopLogprob, UnsupportedError, load_model

from ....parts.servers.fault_server import Asked, FaultServer, reply, serving

COMPLETIONS = "/v1/completions"
LISTED = {" good": -0.5, " bad": -1.5, " so": -3.0}


def listing(top: dict[str, float], text: str = " good") -> Any:
    logprobs = {"tokens": [text], "token_logprobs": [max(top.values())], "top_logprobs": [top]}
    return reply({"choices": [{"text": text, "logprobs": logprobs, "finish_reason": "length"}]})


def served(*answers: Any) -> Any:
    models = reply({"data": [{"id": "m", "owned_by": "somebody"}]})
    return serving({COMPLETIONS: list(answers), "/v1/models": [models]}, native=False)


def bodies(server: FaultServer) -> list[Any]:
    return [asked.json for asked in server.asked if asked.path == COMPLETIONS]


def test_the_likeliest_token() -> None:
    with served(listing(LISTED)) as server, load_model(server.address) as model:
        (result,) = model.classify(["x"])
        assert (result.token.text, result.token.logprob, result.scores) == (" good", None, None)
        assert bodies(server) == [{"prompt": "x", "max_tokens": 1, "temperature": 0.0, "stream": False, "model": "m"}]


def test_labels_are_scored_by_log_probabilities() -> None:
    with served(listing(LISTED)) as server, load_model(server.address) as model:
        (result,) = model.classify(["x"], logprobs=2)
        assert result.token.logprob == -0.5
        assert result.token.top_logprobs == (TopLogprob(" good", None, -0.5), TopLogprob(" bad", None, -1.5))
        assert bodies(server)[0]["logprobs"] == 2


def test_labels_that_are_tokens() -> None:
    with served(listing(LISTED)) as server, load_model(server.address) as model:
        (result,) = model.classify(["x"], labels=[" bad", " good"])
        assert result.label == " good"
        assert result.scores == pytest.approx({" bad": 1 / (1 + math.e), " good": math.e / (1 + math.e)})
        assert bodies(server)[0]["logprobs"] == 20


@pytest.mark.parametrize(
    ("labels", "why"),
    [([" good", " awful"], "not one of the 3 likeliest"), ([" good", " so what"], "not one of")],
)
def test_labels_that_the_server_cannot_score_are_refused(labels: list[str], why: str) -> None:
    with (
        served(listing(LISTED)) as server,
        load_model(server.address) as model,
        pytest.raises(UnsupportedError, match=why),
    ):
        model.classify(["x"], labels=labels)


def test_the_pieces_of_mlx_lm_s_vocabulary() -> None:
    entries = [{"id": 5, "token": "\u0120good", "logprob": -1.0}, {"id": 6, "token": "\u0120bad", "logprob": -2.0}]
    logprobs = {"content": [{**entries[0], "top_logprobs": entries}]}
    answer = reply({"choices": [{"text": " good", "logprobs": logprobs}]})
    with served(answer) as server:
        from ....parts.servers.fault_server import status

        server.answers["/v1/models"] = [status(200, b'{"data": []}', Server="BaseHTTP/0.6")]
        with load_model(server.address) as model:
            (result,) = model.classify(["x"], labels=[" good", " bad"])
            assert (result.label, result.token.id) == (" good", 5)
            assert bodies(server)[0]["top_logprobs"] == 10


def test_a_malformed_answer_is_a_server_error() -> None:
    with (
        served(reply({"choices": []})) as server,
        load_model(server.address) as model,
        pytest.raises(ServerError, match="no completion"),
    ):
        model.classify(["x"])


def letters(connection: socket.socket, asked: Asked) -> None:
    """Tokenizes: a token a letter."""
    reply({"tokens": list(asked.json["content"].encode())})(connection, asked)


def predicted(*ids: int) -> Any:
    listed = [{"id": id, "token": chr(id), "logprob": -1.0} for id in ids]
    return reply({"completion_probabilities": [listed[0] | {"top_logprobs": listed}]})


@pytest.mark.parametrize(
    ("answers", "labels", "match"),
    [
        ({"/tokenize": [reply({"ids": []})]}, None, "/tokenize has no tokens in it"),
        ({"/tokenize": [letters], "/completion": [reply({"content": "x"})]}, None, "no probabilities in it"),
        ({"/tokenize": [letters], "/completion": [reply([])]}, None, "no probabilities in it"),
        (
            {"/tokenize": [letters], "/completion": [predicted(ord("x"))]},
            ["a", "b"],
            "the probability of another token",
        ),
    ],
)
def test_a_malformed_answer_of_llama_server_is_a_server_error(
    answers: Any, labels: list[str] | None, match: str
) -> None:
    with (
        serving(answers) as server,
        load_model(server.address) as model,
        pytest.raises(ServerError, match=match),
    ):
        model.classify(["It is "], labels=labels)


def test_arguments_that_do_not_apply_are_refused() -> None:
    with served(listing(LISTED)) as server, load_model(server.address) as model:
        with pytest.raises(UnsupportedError, match="return_logits"):
            model.classify(["x"], return_logits=True)
        with pytest.raises(UnsupportedError, match="temperature"):
            model.classify(["x"], temperature=0.5)
        with pytest.raises(ValueError, match="labels is empty"):
            model.classify(["x"], labels=[])
        assert bodies(server) == []


# ---------------------------------------------------------------- vLLM


def vllm(connection: socket.socket, asked: Asked) -> None:
    """A token a letter; the n-th letter of a text has the log probability -n, and "z" another 5 less."""
    choices = []
    for index, text in enumerate(asked.json["prompt"]):
        ids = list(text.encode())
        told = [{str(id): {"logprob": -float(place) - 5 * (id == ord("z"))}} for place, id in enumerate(ids)]
        logprobs = {"tokens": ["e"], "token_logprobs": [-0.5], "top_logprobs": [{"e": -0.5}]}
        choice = {"index": index, "text": "e", "prompt_token_ids": ids, "prompt_logprobs": [None, *told[1:]]}
        choices.append(choice | {"token_ids": [101], "logprobs": logprobs})
    reply({"choices": choices[::-1]})(connection, asked)


def test_labels_on_vllm_are_scored_over_all_their_tokens() -> None:
    models = reply({"data": [{"id": "m", "owned_by": "vllm"}]})
    with serving({COMPLETIONS: [vllm], "/v1/models": [models]}, native=False) as server:
        with load_model(server.address) as model:
            results = model.classify(["ab", "abc"], labels=["x", "xz"], logprobs=1)
        assert len(bodies(server)) == 2
    for result, length in zip(results, (2, 3), strict=True):
        odds = math.exp(-(length + 1) - 5)
        assert result.scores == pytest.approx({"x": 1 - odds, "xz": odds})
        assert (result.label, result.token) == ("x", Token("e", 101, -0.5, (TopLogprob("e", None, -0.5),)))


def test_vllm_without_prompt_logprobs_is_an_error() -> None:
    models = reply({"data": [{"id": "m", "owned_by": "vllm"}]})
    with (
        serving({COMPLETIONS: [listing(LISTED)], "/v1/models": [models]}, native=False) as server,
        load_model(server.address) as model,
        pytest.raises(UnsupportedError, match="labels in classify"),
    ):
        model.classify(["x"], labels=[" good"])
