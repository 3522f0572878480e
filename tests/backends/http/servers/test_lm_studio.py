# SPDX-License-Identifier: Apache-2.0
"""LM Studio, after its developer documentation: "OpenAI compatibility", "Tool use", "Structured output", changelog."""

from __future__ import annotations

import pytest

from inference_bridge import ContextLengthExceededError, ServerError, ToolCall, UnsupportedError

from ....parts.servers.recorded import CHAT, SCHEMA, USER, WEATHER, recorded, refusal, text

MODELS = {"data": [{"id": "qwen/qwen3-4b", "object": "model", "owned_by": "organization_owner"}], "object": "list"}

ANSWER = """\
data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"qwen/qwen3-4b","system_fingerprint":\
"qwen/qwen3-4b","choices":[{"index":0,"delta":{"role":"assistant","reasoning_content":"Hm"},"logprobs":null,\
"finish_reason":null}]}

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hi"},\
"logprobs":null,"finish_reason":null}]}

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"logprobs":null,\
"finish_reason":"stop"}]}

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":9,\
"completion_tokens":4,"total_tokens":13,"completion_tokens_details":{"reasoning_tokens":1}}}

data: [DONE]

"""

CALL = """\
data: {"choices":[{"index":0,"delta":{"role":"assistant","tool_calls":[{"index":0,"id":"365174485","type":"function",\
"function":{"name":"weather","arguments":""}}]},"finish_reason":null}]}

data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"type":"function","function":{"name":"","arguments":\
"{\\"city\\":"}}]},"finish_reason":null}]}

data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"type":"function","function":{"arguments":\
"\\"Ulm\\"}"}}]},"finish_reason":null}]}

data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}

data: [DONE]

"""

BROKEN = """\
data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}

event: error
data: {"error":{"message":"The model has crashed without additional information."}}

"""


def test_text_and_reasoning() -> None:
    with recorded(MODELS, {CHAT: text(ANSWER)}) as (_, model):
        result = model.chat(USER).result()
        assert (result.text, result.reasoning, result.finish_reason) == ("Hi", "Hm", "stop")
        assert (result.metrics.prompt_tokens, result.metrics.generated_tokens) == (9, 4)
        assert model.facts.assumed >= {"images", "reasoning"}


def test_reasoning_in_the_text() -> None:
    """A field of its own for reasoning must be turned on in its settings (changelog of 0.3.9)."""
    body = ANSWER.replace('"reasoning_content":"Hm"', '"content":"<think>Hm</think>"')
    with recorded(MODELS, {CHAT: text(body)}) as (_, model):
        result = model.chat(USER).result()
        assert (result.text, result.reasoning) == ("Hi", "Hm")


def test_a_tool_call() -> None:
    """A piece may have an empty name."""
    with recorded(MODELS, {CHAT: text(CALL)}) as (_, model):
        result = model.chat(USER, tools=[WEATHER]).result()
        assert result.tool_calls == (ToolCall("365174485", "weather", {"city": "Ulm"}),)
        assert result.finish_reason == "tool_calls"


def test_the_request_has_lm_studio_s_field_names() -> None:
    with recorded(MODELS, {CHAT: text(CALL)}) as lm_studio:
        lm_studio.model.chat(USER, tools=[WEATHER], tool_choice="weather", top_k=5, repeat_penalty=1.1).result()
        # it refuses an object as tool_choice
        expected = {"tools": [WEATHER.to_dict()], "tool_choice": "required", "top_k": 5, "repeat_penalty": 1.1}
        assert lm_studio.sent() == expected
    with recorded(MODELS, {CHAT: text(ANSWER.replace('"Hi"', r'"{\"city\":\"Ulm\"}"'))}) as lm_studio:
        lm_studio.model.chat(USER, json_schema=SCHEMA, reasoning="low").text()
        assert lm_studio.sent()["response_format"]["json_schema"]["schema"] == SCHEMA
        assert lm_studio.sent()["reasoning_effort"] == "low"


@pytest.mark.parametrize("option", [{"logprobs": 2}, {"min_p": 0.1}, {"stop_tokens": [5]}, {"reasoning": True}])
def test_undocumented_options_are_refused(option: dict[str, object]) -> None:
    with recorded(MODELS, {}) as (_, model), pytest.raises(UnsupportedError, match=next(iter(option))):
        model.chat(USER, **option)  # type: ignore[arg-type]


def test_an_error_during_the_stream_keeps_the_partial_result() -> None:
    with recorded(MODELS, {CHAT: text(BROKEN)}) as (_, model), pytest.raises(ServerError, match="crashed") as caught:
        model.chat(USER).text()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "Hi"


def test_a_prompt_that_is_too_long() -> None:
    said = (
        "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context "
        "length of only 4096 tokens, which is not enough. Try to load the model with a larger context length"
    )
    answers = {CHAT: refusal(400, {"error": said})}
    with recorded(MODELS, answers) as (_, model), pytest.raises(ContextLengthExceededError) as caught:
        model.chat(USER).text()
    assert (caught.value.prompt_tokens, caught.value.context_length) == (5000, 4096)
