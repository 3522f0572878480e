# SPDX-License-Identifier: Apache-2.0
"""Refusals of servers: token counts and messages are read from any form of body, and secrets are removed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference_bridge import ContextLengthExceededError, ServerError, load_model
from inference_bridge.backends.http.transport.errors import of_event, of_status, quoted

from ....parts.servers.fault_server import delta, finish, reply, serving, status, stream

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]
KEY = "sk-0123456789abcdefghijklmnop"

TOO_LONG = {
    "vLLM": "This model's maximum context length is 2048 tokens. However, your prompt contains at least 3000 input "
    "tokens, which exceeds this limit even without any output tokens.",
    "vLLM, chats": "This model's maximum context length is 2048 tokens. However, your request has 3000 input tokens.",
    "vLLM, older": "The decoder prompt (length 3000) is longer than the maximum model length of 2048. Make sure",
    "OpenAI": "This model's maximum context length is 2048 tokens. However, your messages resulted in 3000 tokens.",
    "OpenAI, split": "This model's maximum context length is 2048 tokens. However, you requested 3100 tokens (3000 in "
    "the messages, 100 in the completion).",
    "OpenAI, input": "Input tokens exceed the configured limit of 2048 tokens. Your messages resulted in 3000 tokens.",
    "OpenRouter": "This endpoint's maximum context length is 2048 tokens. However, you requested about 3100 tokens "
    "(3000 of text input, 100 in the output).",
    "llama-cpp-python": "Requested tokens (3000) exceed context window of 2048",
    "llama-server": "request (3000 tokens) exceeds the available context size (2048 tokens), try increasing it",
    "llama-server, embeddings": "input (3000 tokens) is too large to process. increase the physical batch size "
    "(current batch size: 2048)",
    "SGLang": "The input (3000 tokens) is longer than the model's context length (2048 tokens).",
    "SGLang, both": "Requested token count exceeds the model's maximum context length of 2048 tokens. You requested a "
    "total of 3100 tokens: 3000 tokens from the input messages and 100 tokens for the completion.",
    "TGI": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 3000 `inputs` tokens "
    "and 100 `max_new_tokens`",
    "TGI, inputs": "Input validation error: `inputs` must have less than 2048 tokens. Given: 3000",
    "LM Studio": "Trying to keep the first 3000 tokens when context the overflows. However, the model is loaded with "
    "context length of only 2048 tokens, which is not enough.",
    "Anthropic": "prompt is too long: 3000 tokens > 2048 maximum",
    "Mistral": "Prompt contains 3000 tokens and 0 draft tokens, too large for model with 2048 maximum context length",
    "Gemini": "The input token count (3,000) exceeds the maximum number of tokens allowed (2,048).",
    "xAI": "This model's maximum prompt length is 2048 but the request contains 3000 tokens.",
}


def refusal(code: int, body: Any, *private: str) -> Any:
    return of_status("http://h/x", code, {}, body if isinstance(body, bytes) else json.dumps(body).encode(), private)


@pytest.mark.parametrize("server", TOO_LONG)
@pytest.mark.parametrize("wrap", [lambda said: {"error": {"message": said}}, lambda said: {"detail": said}])
def test_a_prompt_over_the_context_has_both_numbers(server: str, wrap: Any) -> None:
    refused = [refusal(status, wrap(TOO_LONG[server])).error for status in (400, 500)]
    for error in (*refused, of_event("u", TOO_LONG[server])):
        assert isinstance(error, ContextLengthExceededError)
        assert (error.prompt_tokens, error.context_length) == (3000, 2048)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (TOO_LONG["vLLM"], (3000, True)),
        (TOO_LONG["vLLM"].replace("at least ", ""), (3000, False)),
        (
            "This model's maximum context length is 2048 tokens. However, your prompt contains 300000 characters (more "
            "than 165888 characters, which is the upper bound for 2048 input tokens). Please reduce the length",
            (3704, True),
        ),
    ],
)
def test_a_lower_bound_of_the_prompt_length_is_reported_as_a_bound(said: str, expected: tuple[int, bool]) -> None:
    error = refusal(400, {"error": {"message": said}}).error
    assert isinstance(error, ContextLengthExceededError)
    assert (error.prompt_tokens, error.at_least) == expected
    assert error.context_length == 2048


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_completion_too_long_for_the_context_is_requested_again_with_fewer_tokens(mode: str) -> None:
    said = (
        "'max_tokens' is too large: 256. This model's maximum context length is 2048 tokens and your request has "
        "2000 input tokens (256 > 2048 - 2000)."
    )
    refused = status(400, json.dumps({"error": {"message": said}}).encode())
    good = stream(delta(content="Hello"), finish("length"))
    with serving({CHAT: [refused, good]}, native=False) as server, load_model(server.address) as model:
        result = model.chat(USER).result() if mode == "sync" else await model.achat(USER).result()
        assert (result.text, result.finish_reason) == ("Hello", "length")
        limits = [asked.json["max_tokens"] for asked in server.asked if asked.path == CHAT]
        assert limits == [256, 48]
        await model.aclose()


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "So it is"}},
        {"error": "So it is"},
        {"error": {"error": {"message": "So it is"}}},
        {"error": {"code": 7, "details": [{"reason": "So it is"}]}},
        {"errors": [{"message": "So it is", "path": ["x"]}]},
        {"object": "error", "message": "So it is", "type": "BadRequestError"},
        {"detail": [{"loc": ["body"], "msg": "So it is", "input": {"private": "thing"}}]},
        {"detail": {"error": "So it is"}},
        {"error": True, "reason": "So it is"},
        {"error": "", "error_description": "So it is"},
        {"title": "So it is", "status": 400},
        [{"error": {"message": "So it is"}}],
        "So it is",
        b"<html><body>So it is</body></html>",
    ],
    ids=str,
)
def test_the_sentence_is_found_in_any_form_of_body(body: Any) -> None:
    said = str(refusal(400, body).error)
    assert said.endswith(": So it is")


@pytest.mark.parametrize(
    "body", [{"error": {"message": "So it is"}}, {"error": "So it is"}, {"detail": "So it is"}], ids=str
)
def test_an_error_with_status_200_is_an_error(body: Any) -> None:
    with serving({CHAT: [stream(body)]}, native=False) as server, load_model(server.address) as model:
        with pytest.raises(ServerError, match="So it is"):
            model.chat(USER).result()
        server.answers["/v1/completions"] = [reply(body)]
        with pytest.raises(ServerError, match="So it is"):
            model.classify(["x"])


@pytest.mark.parametrize("before", range(250, 310))
def test_a_key_is_hidden_before_a_text_is_cut(before: int) -> None:
    for text in ("x" * before + " " + KEY, "x" * before + " " + KEY + " and more"):
        assert KEY[:6] not in quoted(text, [KEY])
        assert KEY[:6] not in str(refusal(400, {"error": text}, KEY).error)


@pytest.mark.parametrize("length", range(4, len(KEY) + 1))
def test_a_key_that_somebody_else_has_cut_is_hidden_too(length: int) -> None:
    assert KEY[:4] not in quoted(f"Wrong key {KEY[:length]}", [KEY])
    if length > 8 + 1:
        assert KEY[:4] not in quoted(f"Wrong key {KEY[:length]}…", [KEY])


def test_a_message_without_secrets_is_quoted() -> None:
    assert quoted("The sky is blue", [KEY, "hi"]) == "The sky is blue"


def test_the_error_for_an_unsupported_field_suggests_a_remedy() -> None:
    said = "Unsupported parameter: 'max_tokens' is not supported with this model."
    assert "defaults='server'" in str(refusal(400, {"error": {"message": said}}).error)


def test_a_prompt_that_fills_the_whole_context_is_over_it() -> None:
    """vLLM gives no numbers when it has reduced max_tokens. The context length is known from its list of models."""
    said = "max_tokens must be at least 1, got 0."
    listed = {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 2048}]}
    refused = status(400, json.dumps({"error": {"message": said}}).encode())
    answers = {"/v1/models": [reply(listed)], CHAT: [refused], "/v1/completions": [refused]}
    with serving(answers, native=False) as server, load_model(server.address) as model:
        for answer in (model.chat(USER), model.generate("a")):
            with pytest.raises(ContextLengthExceededError) as raised:
                answer.result()
            assert (raised.value.prompt_tokens, raised.value.context_length) == (2048, 2048)
