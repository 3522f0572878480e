# SPDX-License-Identifier: Apache-2.0
"""Text Generation Inference, after the types of its router (router/src/lib.rs, chat.rs, infer/mod.rs)."""

from __future__ import annotations

import pytest

from inference_bridge import ContextLengthExceededError, ServerError, ToolCall, UnsupportedError
from inference_bridge.backends.http.transport.sockets import Line

from ....parts.servers.recorded import CHAT, SCHEMA, USER, WEATHER, recorded, refusal, text

NAME = "HuggingFaceH4/zephyr-7b-beta"
MODELS = {"object": "list", "data": [{"id": NAME, "object": "model", "created": 0, "owned_by": NAME}]}

ANSWER = """\
data: {"object":"chat.completion.chunk","id":"","created":1,"model":"HuggingFaceH4/zephyr-7b-beta",\
"system_fingerprint":"3.3.6-sha","choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},"logprobs":{\
"content":[{"token":"Hi","logprob":-0.25,"top_logprobs":[{"token":"Hi","logprob":-0.25},{"token":"Yo","logprob":\
-2.0}]}]},"finish_reason":null}],"usage":null}

:

data: {"object":"chat.completion.chunk","id":"","choices":[{"index":0,"delta":{"role":"assistant","content":""},\
"logprobs":null,"finish_reason":"stop"}],"usage":null}

data: {"object":"chat.completion.chunk","id":"","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,\
"total_tokens":11}}

data: [DONE]

"""

CALL = """\
data: {"choices":[{"index":0,"delta":{"role":"assistant","tool_calls":[{"index":0,"id":"0","type":"function",\
"function":{"name":"weather","arguments":"{"}}]},"logprobs":null,"finish_reason":null}]}

data: {"choices":[{"index":0,"delta":{"role":"assistant","tool_calls":[{"index":0,"id":"0","type":"function",\
"function":{"name":null,"arguments":"\\"city\\":\\"Ulm\\"}"}}]},"logprobs":null,"finish_reason":null}]}

data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":"stop"}]}

data: [DONE]

"""

BROKEN = """\
data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},"logprobs":null,"finish_reason":null}]}

data: {"error":{"message":"Request failed during generation: CUDA out of memory","http_status_code":422}}

"""


def test_text_with_log_probabilities() -> None:
    with recorded(MODELS, {CHAT: text(ANSWER)}) as (_, model):
        result = model.chat(USER, logprobs=2).result()
        assert (result.text, result.finish_reason) == ("Hi", "stop")
        assert [one.logprob for one in result.tokens[0].top_logprobs] == [-0.25, -2.0]
        assert (result.metrics.prompt_tokens, result.metrics.generated_tokens) == (9, 2)


def test_a_tool_call() -> None:
    with recorded(MODELS, {CHAT: text(CALL)}) as (_, model):
        result = model.chat(USER, tools=[WEATHER], tool_choice="required").result()
        assert result.tool_calls == (ToolCall("0", "weather", {"city": "Ulm"}),)
        assert result.finish_reason == "tool_calls"


def test_the_request_has_tgi_s_field_names() -> None:
    with recorded(MODELS, {CHAT: text(ANSWER.replace('"content":"Hi"', r'"content":"{\"city\":\"Ulm\"}"'))}) as tgi:
        tgi.model.chat(USER, json_schema=SCHEMA, top_p=0.0, seed=3).text()
        # the schema is at `value`, and a top_p of 1 would be refused
        wrapped = {"name": "answer", "schema": SCHEMA, "strict": True}
        assert tgi.sent() == {"response_format": {"type": "json_schema", "value": wrapped}, "seed": 3}


@pytest.mark.parametrize("option", [{"presence_penalty": 0.5}, {"logit_bias": {5: 1.0}}, {"top_k": 5}])
def test_options_that_tgi_ignores_or_changes_are_refused(option: dict[str, object]) -> None:
    with recorded(MODELS, {}) as (_, model), pytest.raises(UnsupportedError, match=next(iter(option))):
        model.chat(USER, **option)  # type: ignore[arg-type]


def test_an_error_during_the_stream_keeps_the_partial_result() -> None:
    with recorded(MODELS, {CHAT: text(BROKEN)}) as (_, model), pytest.raises(ServerError, match="CUDA") as caught:
        model.chat(USER).text()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "Hi"


def test_a_prompt_that_is_too_long() -> None:
    said = "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens"
    answers = {CHAT: refusal(422, {"error": said + " and 256 `max_new_tokens`", "error_type": "validation"})}
    with recorded(MODELS, answers) as (_, model), pytest.raises(ContextLengthExceededError) as caught:
        model.chat(USER).text()
    assert (caught.value.prompt_tokens, caught.value.context_length) == (5000, 4096)


def test_requests_to_an_overloaded_server_are_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Line, "pause", lambda *_: False)
    overloaded = refusal(429, {"error": "Model is overloaded", "error_type": "overloaded"})
    with recorded(MODELS, {CHAT: overloaded}) as tgi:
        tgi.server.answers[CHAT].append(text(ANSWER))
        assert tgi.model.chat(USER).text() == "Hi"
