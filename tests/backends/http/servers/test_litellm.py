# SPDX-License-Identifier: Apache-2.0
"""LiteLLM's proxy, after its documentation and its issues on streamed tool calls."""

from __future__ import annotations

import pytest

from inference_bridge import ServerError, ToolCall

from ....parts.servers.recorded import CHAT, USER, WEATHER, recorded, refusal, text

MODELS = {"data": [{"id": "local", "object": "model", "created": 1677610602, "owned_by": "openai"}], "object": "list"}

ANSWER = """\
data: {"id":"chatcmpl-1","created":1,"model":"local","object":"chat.completion.chunk","choices":[{"index":0,"delta":\
{"reasoning_content":"Hm","thinking_blocks":[{"type":"thinking","thinking":"Hm"}],"content":"","role":"assistant"}}]}

data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"Hi"}}]}

data: {"id":"chatcmpl-1","choices":[{"finish_reason":"stop","index":0,"delta":{}}]}

data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{}}],"usage":{"completion_tokens":4,"prompt_tokens":9,\
"total_tokens":13,"prompt_tokens_details":{"cached_tokens":2}}}

data: [DONE]

"""

CALLS = """\
data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"id":"a","function":\
{"arguments":"{\\"city\\": \\"Ulm\\"}","name":"weather"},"type":"function","index":0}]}}]}

data: {"choices":[{"index":0,"delta":{"tool_calls":[{"id":"b","function":{"arguments":"{\\"city\\": \\"Bonn\\"}",\
"name":"weather"},"type":"function","index":0}]}}]}

data: {"choices":[{"finish_reason":"tool_calls","index":0,"delta":{}}]}

data: [DONE]

"""

BROKEN = """\
data: {"choices":[{"index":0,"delta":{"content":"Hi","role":"assistant"}}]}

data: {"error": {"message": "litellm.APIConnectionError: OllamaException - peer closed connection", "type": null, \
"param": null, "code": "500"}}

"""


def test_text_and_reasoning() -> None:
    with recorded(MODELS, {CHAT: text(ANSWER)}) as (_, model):
        result = model.chat(USER).result()
        assert (result.text, result.reasoning, result.finish_reason) == ("Hi", "Hm", "stop")
        metrics = result.metrics
        assert (metrics.prompt_tokens, metrics.cached_tokens, metrics.generated_tokens) == (9, 2, 4)


def test_calls_of_one_index_are_several() -> None:
    with recorded(MODELS, {CHAT: text(CALLS)}) as (_, model):
        calls = model.chat(USER, tools=[WEATHER]).result().tool_calls
        assert calls == (ToolCall("a", "weather", {"city": "Ulm"}), ToolCall("b", "weather", {"city": "Bonn"}))


def test_an_error_during_the_stream_keeps_the_partial_result() -> None:
    with recorded(MODELS, {CHAT: text(BROKEN)}) as (_, model), pytest.raises(ServerError, match="closed") as caught:
        model.chat(USER).text()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "Hi"


def test_missing_log_probabilities_are_an_error() -> None:
    """With `drop_params` LiteLLM drops options that the upstream server does not support."""
    with recorded(MODELS, {CHAT: text(ANSWER)}) as (_, model), pytest.raises(ServerError, match="has none") as caught:
        model.chat(USER, logprobs=2).text()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "Hi"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (400, "ExceededBudget: User=x over budget. Spend: 1.0, Budget: 0.5"),
        (401, "Authentication Error, Invalid proxy server token passed"),
        (400, "litellm.UnsupportedParamsError: ollama does not support parameters: {'logit_bias': {}}"),
    ],
)
def test_refusals_have_the_message_of_the_server(code: int, said: str) -> None:
    body = {"error": {"message": said, "type": "budget_exceeded", "param": "None", "code": str(code)}}
    with recorded(MODELS, {CHAT: refusal(code, body)}) as (_, model), pytest.raises(ServerError) as caught:
        model.chat(USER).text()
    assert said[:20] in str(caught.value)
    assert caught.value.status == code
