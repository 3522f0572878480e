# SPDX-License-Identifier: Apache-2.0
"""TabbyAPI, after its own types (endpoints/OAI/types, endpoints/core, common/sampling.py, common/networking.py)."""

from __future__ import annotations

import pytest

from inference_bridge import ServerError, ToolCall, UnsupportedError

from ....parts.servers.fault_server import reply
from ....parts.servers.recorded import CHAT, SCHEMA, USER, WEATHER, recorded, text

PARAMETERS = {"max_seq_len": 8192, "cache_mode": "FP16", "max_batch_size": 3, "use_vision": False}
MODELS = {
    "object": "list",
    "data": [{"id": "Qwen3-8B-exl3", "object": "model", "owned_by": "tabbyAPI", "parameters": PARAMETERS}],
}
PROPS = reply({"total_slots": 3, "chat_template": "{{ x }}", "default_generation_settings": {"n_ctx": 8192}})

ANSWER = """\
: ping - 2026-01-01 00:00:00+00:00

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"choices":[{"index":0,"delta":\
{"reasoning_content":"Hm"},"finish_reason":null}],"model":"Qwen3-8B-exl3"}

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"choices":[{"index":0,"delta":{"content":"Hi"},\
"finish_reason":null,"logprobs":{"content":[{"token":"Hi","token_id":7,"logprob":-0.5,"top_logprobs":[{"token":"Hi",\
"token_id":7,"logprob":-0.5}]}]}}],"model":"Qwen3-8B-exl3"}

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"choices":[{"index":0,"delta":{},\
"finish_reason":"stop","eos_reason":"stop_token"}],"model":"Qwen3-8B-exl3"}

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"choices":[{"index":0,"delta":{},\
"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"prompt_time":0.1,"prompt_tokens_per_sec":"Indeterminate",\
"completion_tokens":3,"completion_time":0.2,"completion_tokens_per_sec":15.0,"total_tokens":12,"total_time":0.3}}

data: [DONE]

"""

CALL = """\
data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c1","type":"function","function":{"name":\
"weather","arguments":"{\\"city\\": \\"Ulm\\"}"}},{"index":1,"id":"c2","type":"function","function":{"name":"weather",\
"arguments":"{\\"city\\": \\"Bonn\\"}"}}]},"finish_reason":"tool_calls"}]}

data: [DONE]

"""

BROKEN = """\
data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}

data: {"error":{"message":"Chat completion aborted. Please check the server console.","trace":null}}

"""


def test_tabbyapi_is_not_detected_as_llama_server() -> None:
    with recorded(MODELS, {CHAT: text(ANSWER), "/props": PROPS}) as (server, model):
        result = model.chat(USER, logprobs=1).result()
        assert (result.text, result.reasoning, result.finish_reason) == ("Hi", "Hm", "stop")
        assert (result.metrics.prompt_tokens, result.metrics.generated_tokens) == (9, 3)
        assert result.tokens[-1].id == 7
        assert (model.parallel, model.info.context_length) == (3, 8192)
        assert "images" not in model.capabilities
        assert "/apply-template" not in server.paths()


def test_tool_calls() -> None:
    with recorded(MODELS, {CHAT: text(CALL)}) as (_, model):
        calls = model.chat(USER, tools=[WEATHER]).result().tool_calls
        assert calls == (ToolCall("c1", "weather", {"city": "Ulm"}), ToolCall("c2", "weather", {"city": "Bonn"}))


def test_the_request_has_tabbyapi_s_field_names() -> None:
    with recorded(MODELS, {CHAT: text(ANSWER.replace('"content":"Hi"', r'"content":"{\"city\":\"Ulm\"}"'))}) as tabby:
        tabby.model.chat(USER, json_schema=SCHEMA, repeat_penalty=1.1, reasoning=False).text()
        variables = {"enable_thinking": False, "thinking": False}
        expected = {"json_schema": SCHEMA, "repetition_penalty": 1.1, "chat_template_kwargs": variables}
        assert tabby.sent() == expected
        tabby.model.chat(USER, stop=["x"], stop_tokens=[5]).text()
        assert tabby.sent() == {"stop": ["x", 5]}
        tabby.model.chat(USER, reasoning_budget=5).text()
        assert tabby.sent() == {"reasoning_budget_tokens": 5}
        tabby.model.chat(USER, regex="a+").text()
        assert tabby.sent() == {"regex_pattern": "a+"}


def test_tokens_are_counted_by_tabbyapi_s_endpoint() -> None:
    answer = reply({"tokens": [1, 2, 3], "length": 3})
    with recorded(MODELS, {"/v1/token/encode": answer}) as tabby:
        assert tabby.model.count_tokens("a b c") == 3
        body = tabby.sent("/v1/token/encode")
        assert body == {"text": "a b c", "add_bos_token": False, "encode_special_tokens": False}


@pytest.mark.parametrize("option", [{"seed": 3}, {"tool_choice": "weather", "tools": [WEATHER]}, {"choices": ["a"]}])
def test_options_that_tabbyapi_lacks_are_refused(option: dict[str, object]) -> None:
    with recorded(MODELS, {}) as (_, model), pytest.raises(UnsupportedError, match=next(iter(option))):
        model.chat(USER, **option)  # type: ignore[arg-type]


def test_an_error_during_the_stream_keeps_the_partial_result() -> None:
    with recorded(MODELS, {CHAT: text(BROKEN)}) as (_, model), pytest.raises(ServerError, match="aborted") as caught:
        model.chat(USER).text()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "Hi"
