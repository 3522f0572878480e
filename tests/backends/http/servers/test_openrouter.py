# SPDX-License-Identifier: Apache-2.0
"""OpenRouter, after its API reference: "Models", "Streaming", "Errors and debugging", "Reasoning tokens"."""

from __future__ import annotations

import pytest

from inference_bridge import ModelNotFoundError, ServerError, ToolCall, UnsupportedError

from ....parts.servers.recorded import CHAT, SCHEMA, USER, WEATHER, recorded, refusal, text

NAME = "qwen/qwen3-32b"
TAKEN = """frequency_penalty include_reasoning logit_bias max_tokens min_p presence_penalty reasoning repetition_penalty
    response_format seed stop structured_outputs temperature tool_choice tools top_k top_p"""
ENTRY = {
    "id": NAME,
    "canonical_slug": "qwen/qwen3-32b-04-28",
    "name": "Qwen: Qwen3 32B",
    "context_length": 40960,
    "architecture": {"modality": "text->text", "input_modalities": ["text"], "output_modalities": ["text"]},
    "pricing": {"prompt": "0.00000005", "completion": "0.0000002"},
    "supported_parameters": TAKEN.split(),
}
OTHER = ENTRY | {"id": "meta/llama", "supported_parameters": ["max_tokens", "temperature"]}
MODELS = {"data": [ENTRY, OTHER]}

ANSWER = """\
: OPENROUTER PROCESSING

: OPENROUTER PROCESSING

data: {"id":"gen-1","provider":"DeepInfra","model":"qwen/qwen3-32b","object":"chat.completion.chunk","created":1,\
"choices":[{"index":0,"delta":{"role":"assistant","content":"","reasoning":"Hm","reasoning_details":[{"type":\
"reasoning.text","text":"Hm"}]},"finish_reason":null,"native_finish_reason":null,"logprobs":null}]}

data: {"id":"gen-1","choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},"finish_reason":null,\
"native_finish_reason":null,"logprobs":null}]}

data: {"id":"gen-1","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":"stop",\
"native_finish_reason":"stop","logprobs":null}]}

data: {"id":"gen-1","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":\
{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13,"cost":0.0001,"prompt_tokens_details":{"cached_tokens":2},\
"completion_tokens_details":{"reasoning_tokens":1}}}

data: [DONE]

"""

CALL = """\
data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"id":"call_1","index":0,"type":\
"function","function":{"name":"weather","arguments":""}}]},"finish_reason":null}]}

data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"type":"function",\
"function":{"arguments":"{\\"city\\": \\"Ulm\\"}"}}]},"finish_reason":null}]}

data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":"tool_calls"}]}

data: [DONE]

"""

BROKEN = """\
data: {"id":"gen-1","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}

data: {"id":"gen-1","provider":"x","error":{"code":"server_error","message":"Provider disconnected unexpectedly"},\
"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}

"""


def test_capabilities_are_read_from_the_list_of_models() -> None:
    with recorded(MODELS, {}, model=NAME) as (_, model):
        assert model.info.context_length == 40960
        assert {"tools", "json_schema", "reasoning"} <= model.capabilities
        assert not {"images", "audios", "logprobs"} & model.capabilities
        assert model.facts.assumed == frozenset()
    with recorded(MODELS, {}, model="meta/llama") as (_, model):
        assert model.options == {"temperature"}
        assert not {"tools", "json_schema", "reasoning"} & model.capabilities


def test_a_model_must_be_chosen() -> None:
    with pytest.raises(ModelNotFoundError, match="meta/llama"), recorded(MODELS, {}):
        pass


def test_text_and_reasoning_between_comments() -> None:
    with recorded(MODELS, {CHAT: text(ANSWER)}, model=NAME) as (_, model):
        result = model.chat(USER).result()
        assert (result.text, result.reasoning, result.finish_reason) == ("Hi", "Hm", "stop")
        metrics = result.metrics
        assert (metrics.prompt_tokens, metrics.cached_tokens, metrics.generated_tokens) == (9, 2, 4)


def test_a_tool_call() -> None:
    with recorded(MODELS, {CHAT: text(CALL)}, model=NAME) as (_, model):
        result = model.chat(USER, tools=[WEATHER]).result()
        assert result.tool_calls == (ToolCall("call_1", "weather", {"city": "Ulm"}),)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [(True, {"enabled": True}), (False, {"enabled": False}), ("low", {"effort": "low"})],
)
def test_the_request_has_openrouter_s_field_names(asked: bool | str, expected: dict[str, object]) -> None:
    with recorded(
        MODELS, {CHAT: text(ANSWER.replace('"content":"Hi"', r'"content":"{\"city\":\"Ulm\"}"'))}, model=NAME
    ) as router:
        before = {"role": "assistant", "content": "Hi", "reasoning": "Hm"}
        turns = [*USER, before, *USER]
        router.model.chat(turns, reasoning=asked, repeat_penalty=1.1, json_schema=SCHEMA).text()  # type: ignore[arg-type]
        sent = router.sent()
        assert (sent["reasoning"], sent["repetition_penalty"]) == (expected, 1.1)
        assert router.server.asked[-1].json["messages"][-2] == before


def test_logprobs_that_the_model_does_not_have_are_refused() -> None:
    with recorded(MODELS, {}, model=NAME) as (_, model), pytest.raises(UnsupportedError, match="logprobs"):
        model.chat(USER, logprobs=2)


def test_an_error_during_the_stream_keeps_the_partial_result() -> None:
    with (
        recorded(MODELS, {CHAT: text(BROKEN)}, model=NAME) as (_, model),
        pytest.raises(ServerError, match="disconnected") as caught,
    ):
        model.chat(USER).text()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "Hi"


def test_missing_credits_are_a_server_error() -> None:
    body = {"error": {"code": 402, "message": "Insufficient credits", "metadata": {"provider_name": "x"}}}
    answers = {CHAT: refusal(402, body)}
    with (
        recorded(MODELS, answers, model=NAME) as (_, model),
        pytest.raises(ServerError, match="Insufficient") as caught,
    ):
        model.chat(USER).text()
    assert caught.value.status == 402
