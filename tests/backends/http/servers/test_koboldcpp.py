# SPDX-License-Identifier: Apache-2.0
"""KoboldCpp, after its API: the OpenAI-compatible part of koboldcpp.py, and its /props of llama-server's form."""

from __future__ import annotations

import pytest

from inference_bridge import ServerError, ToolCall, UnsupportedError

from ....parts.servers.fault_server import reply
from ....parts.servers.recorded import CHAT, USER, WEATHER, recorded, refusal, text

NAME = "koboldcpp/Qwen3-8B-Q4_K_M"
MODELS = {
    "object": "list",
    "data": [{"id": NAME, "object": "model", "created": 1, "owned_by": "koboldcpp", "permission": [], "root": "x"}],
}
PROPS = reply({"chat_template": "{{ x }}", "total_slots": 1, "default_generation_settings": {"n_ctx": 8192}})

ANSWER = """\
event: message
data: {"id":"koboldcpp","object":"chat.completion.chunk","created":1,"model":"koboldcpp/Qwen3-8B-Q4_K_M","choices":\
[{"index":0,"finish_reason":null,"delta":{"role":"assistant","content":"Hi"}}]}

event: message
data: {"id":"koboldcpp","object":"chat.completion.chunk","created":1,"model":"koboldcpp/Qwen3-8B-Q4_K_M","choices":\
[{"index":0,"finish_reason":"length","delta":{"role":"assistant","content":""}}]}

event: message
data: [DONE]
"""

CALL = """\
event: message
data: {"id":"koboldcpp","choices":[{"index":0,"finish_reason":"tool_calls","delta":{"role":"assistant","content":\
null,"tool_calls":[{"id":"call_001","index":0,"type":"function","function":{"name":"weather","arguments":\
"{\\"city\\": \\"Ulm\\"}"}}]}}]}

event: message
data: [DONE]

"""


def test_koboldcpp_is_not_detected_as_llama_server() -> None:
    """The server does not have the other endpoints."""
    with recorded(MODELS, {CHAT: text(ANSWER), "/props": PROPS}) as (server, model):
        result = model.chat(USER).result()
        assert (result.text, result.finish_reason) == ("Hi", "length")
        assert model.facts.server == "koboldcpp"
        assert not {"/apply-template", "/completion", "/tokenize"} & set(server.paths())


def test_a_tool_call_that_comes_whole() -> None:
    with recorded(MODELS, {CHAT: text(CALL)}) as (_, model):
        result = model.chat(USER, tools=[WEATHER]).result()
        assert (result.text, result.tool_calls) == ("", (ToolCall("call_001", "weather", {"city": "Ulm"}),))


def test_the_request_has_koboldcpp_s_field_names() -> None:
    with recorded(MODELS, {CHAT: text(ANSWER)}) as kobold:
        kobold.model.chat(USER, top_k=5, min_p=0.1, repeat_penalty=1.1, tools=[WEATHER], tool_choice="none").text()
        assert kobold.sent() == {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}


@pytest.mark.parametrize(
    "option",
    [
        {"frequency_penalty": 0.5},  # it takes it for presence_penalty
        {"tool_choice": "required", "tools": [WEATHER]},
        {"logprobs": 1},
        {"max_tokens": -1},  # the server has its own limit
    ],
)
def test_options_that_koboldcpp_would_misread_are_refused(option: dict[str, object]) -> None:
    with recorded(MODELS, {}) as (_, model), pytest.raises(UnsupportedError, match=next(iter(option))):
        model.chat(USER, **option)  # type: ignore[arg-type]


def test_a_busy_server() -> None:
    busy = {"detail": {"msg": "Server is busy; please try again later.", "type": "service_unavailable"}}
    with recorded(MODELS, {CHAT: refusal(503, busy)}) as (_, model), pytest.raises(ServerError, match="is busy"):
        model.chat(USER, timeout=0.5).text()
