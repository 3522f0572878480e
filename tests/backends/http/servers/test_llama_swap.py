# SPDX-License-Identifier: Apache-2.0
"""llama-swap, after its README and the routes and answers of its server (internal/server, internal/swaputil)."""

from __future__ import annotations

import pytest

from inference_bridge import ServerError

from ....parts.servers.fault_server import PROPS, reply
from ....parts.servers.recorded import CHAT, USER, recorded, refusal, text

CAPABLE = {"architecture": {"input_modalities": ["text", "image"], "output_modalities": ["text"]}}
MODELS = {
    "object": "list",
    "data": [
        {"id": "small", "object": "model", "created": 1, "owned_by": "llama-swap", "status": {"value": "unloaded"}},
        {"id": "big", "object": "model", "owned_by": "llama-swap", "context_length": 8192, **CAPABLE}
        | {"supported_parameters": ["tools", "tool_choice"]},
    ],
}

ANSWER = """\
data: {"choices":[{"delta":{"reasoning_content":"llama-swap loading model: small\\n"}}]}

data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],"created":1,"id":"c",\
"model":"small","system_fingerprint":"b6000","object":"chat.completion.chunk"}

data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"Hi"}}]}

data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}]}

data: {"choices":[],"usage":{"completion_tokens":2,"prompt_tokens":9,"total_tokens":11},"timings":{"cache_n":4,\
"prompt_n":5,"prompt_ms":10.0,"predicted_n":2,"predicted_ms":20.0}}

data: [DONE]

"""


def test_llama_swap_is_used_through_the_endpoints_that_it_forwards() -> None:
    """Its /props is that of the upstream llama-server; it does not forward /apply-template and /tokenize."""
    with recorded(MODELS, {CHAT: text(ANSWER), "/props": reply(PROPS)}, model="small") as (server, model):
        result = model.chat(USER).result()
        assert (result.text, result.finish_reason) == ("Hi", "stop")
        assert (result.metrics.prompt_tokens, result.metrics.cached_tokens) == (9, 4)
        assert "/apply-template" not in server.paths()


def test_capabilities_are_read_from_the_list_of_models() -> None:
    with recorded(MODELS, {}, model="big") as (_, model):
        assert {"images", "tools"} <= model.capabilities
        assert "audios" not in model.capabilities
        assert not {"images", "tools"} & model.facts.assumed
        assert model.info.context_length == 8192


def test_the_server_behind_it_has_all_its_features() -> None:
    answers = {"/upstream/small/props": reply(PROPS), "/upstream/small/v1/models": reply({"data": []})}
    with recorded(MODELS, answers, model="small") as (server, _):
        from inference_bridge import load_model

        with load_model(f"{server.address}/upstream/small") as model:
            assert "token_ids" in model.capabilities


def test_a_model_that_is_not_there() -> None:
    error = {
        "message": "no router found for model",
        "type": "invalid_request_error",
        "param": None,
        "code": "not_found",
    }
    answers = {CHAT: refusal(404, {"src": "llama-swap", "error": error})}
    with recorded(MODELS, answers, model="gone") as (_, model), pytest.raises(ServerError, match="no router found"):
        model.chat(USER).text()
