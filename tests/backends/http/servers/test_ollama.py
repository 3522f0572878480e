# SPDX-License-Identifier: Apache-2.0
"""Ollama by its own API, after docs/api and api/types.go in its repository."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference_bridge import (
    Attachment,
    ContextLengthExceededError,
    Message,
    ModelNotFoundError,
    ServerError,
    ToolCall,
    UnsupportedError,
    load_model,
)

from ....parts.servers.fault_server import Answer, raw, reply, serving
from ....parts.servers.recorded import SCHEMA, USER, WEATHER, Recorded, recorded, refusal

CHAT, GENERATE = "/api/chat", "/api/generate"
ENTRY = {"id": "qwen3:latest", "object": "model", "created": 1735689600, "owned_by": "library"}
MODELS = {"object": "list", "data": [ENTRY]}
SHOWN: dict[str, Any] = {
    "modelfile": "FROM qwen3",
    "parameters": 'num_ctx                        8192\nstop                           "<|im_end|>"',
    "template": "{{ .Prompt }}",
    "details": {"format": "gguf", "family": "qwen3", "parameter_size": "8.2B", "quantization_level": "Q4_K_M"},
    "model_info": {
        "general.architecture": "qwen3",
        "qwen3.block_count": 36,
        "qwen3.context_length": 40960,
        "qwen3.embedding_length": 4096,
    },
    "capabilities": ["completion", "tools", "thinking"],
}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"
LAST = {
    "model": "qwen3",
    "created_at": "2025-10-26T17:21:21.196249Z",
    "done": True,
    "done_reason": "stop",
    "total_duration": 4883583458,
    "load_duration": 1334875,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 342546000,
    "eval_count": 3,
    "eval_duration": 4535599000,
}


def lines(*values: dict[str, Any]) -> Answer:
    return raw(HEAD, b"".join(json.dumps(value).encode() + b"\n" for value in values))


def said(done: bool = False, **message: Any) -> dict[str, Any]:
    out = {"model": "qwen3", "created_at": "x", "message": {"role": "assistant", "content": ""} | message}
    return out | (LAST if done else {"done": False})


def ollama(answers: dict[str, Answer], shown: Any = SHOWN, **options: Any) -> Any:
    own = {"/api/version": reply({"version": "0.15.2"}), "/api/show": reply(shown)}
    return recorded(MODELS, own | answers, **options)


def test_model_info_is_read_from_api_show() -> None:
    with ollama({}) as (server, model):
        assert model.facts.server == "ollama"
        assert {"chat", "tools", "reasoning", "json_schema"} <= model.capabilities
        assert not {"images", "audios", "embeddings"} & model.capabilities
        assert model.facts.assumed == frozenset()
        info = model.info
        assert (info.architecture, info.num_layers, info.hidden_size, info.context_length) == ("qwen3", 36, 4096, 8192)
        assert "/v1/embeddings" not in server.paths()  # that would load the model


def test_capabilities_of_an_embedding_model_and_a_vision_model() -> None:
    with ollama({}, SHOWN | {"capabilities": ["embedding"]}) as (_, model):
        assert "embeddings" in model.capabilities
        assert "chat" not in model.capabilities
    with ollama({CHAT: lines(said(done=True))}, SHOWN | {"capabilities": ["completion", "vision"]}) as one:
        one.model.chat([Message("user", ["Look:", Attachment("image/png", data=b"dot")])]).text()
        assert one.server.asked[-1].json["messages"] == [{"role": "user", "content": "Look:", "images": ["ZG90"]}]
        with pytest.raises(UnsupportedError, match="not by URL"):
            one.model.chat([Message("user", [Attachment("image/png", url="https://x/y.png")])])


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_text_thinking_and_metrics(mode: str) -> None:
    answer = lines(said(thinking="Hm"), said(content="Hi"), said(content=" you"), said(done=True))
    with ollama({CHAT: answer}) as (_, model):
        result = model.chat(USER).result() if mode == "sync" else await model.achat(USER).result()
        assert (result.text, result.reasoning, result.finish_reason) == ("Hi you", "Hm", "stop")
        metrics = result.metrics
        assert (metrics.prompt_tokens, metrics.generated_tokens) == (26, 3)
        assert metrics.prefill_seconds == pytest.approx(0.342546)
        await model.aclose()


def test_several_tool_calls() -> None:
    def call(city: str, **more: Any) -> dict[str, Any]:
        return {"function": {"index": 0, "name": "weather", "arguments": {"city": city}}} | more

    answer = lines(said(tool_calls=[call("Ulm", id="call_1")]), said(tool_calls=[call("Bonn")]), said(done=True))
    with ollama({CHAT: answer}) as (_, model):
        result = model.chat(USER, tools=[WEATHER]).result()
        assert [one.arguments for one in result.tool_calls] == [{"city": "Ulm"}, {"city": "Bonn"}]
        assert result.tool_calls[0].id == "call_1"
        assert result.finish_reason == "tool_calls"


def test_log_probabilities() -> None:
    entry = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": [{"token": "Hi", "logprob": -0.5}]}
    with ollama({CHAT: lines(said(content="Hi") | {"logprobs": [entry]}, said(done=True))}) as one:
        (token,) = one.model.chat(USER, logprobs=1).result().tokens
        assert (token.logprob, len(token.top_logprobs)) == (-0.5, 1)
        sent = one.server.asked[-1].json
        assert (sent["logprobs"], sent["top_logprobs"]) == (True, 1)
    older = lines(said(content="Hi"), said(done=True))
    with ollama({CHAT: older}) as (_, model), pytest.raises(ServerError, match="has none"):
        model.chat(USER, logprobs=1).text()


def sent(one: Recorded, path: str) -> dict[str, Any]:
    body: dict[str, Any] = [asked.json for asked in one.server.asked if asked.path == path][-1]
    return body


def test_a_prompt_is_sent_raw() -> None:
    """Its /v1/completions would put the chat template around it."""
    answer = lines({"response": "Hi", "done": False}, {"response": "", **LAST, "done_reason": "length"})
    with ollama({GENERATE: answer}) as one:
        result = one.model.generate("Hello", top_k=5, seed=3, json_schema=SCHEMA).result()
        assert (result.text, result.finish_reason) == ("Hi", "length")
        body = sent(one, GENERATE)
        assert (body["prompt"], body["raw"], body["format"]) == ("Hello", True, SCHEMA)
        options = {"temperature": 0.0, "top_k": 5, "seed": 3, "num_predict": 256}
        assert body["options"] == options
        assert (body["truncate"], body["shift"]) == (False, False)


def test_the_request_has_the_whole_conversation() -> None:
    turns = [
        *USER,
        Message("assistant", "", tool_calls=[ToolCall("c1", "weather", {"city": "Ulm"})], reasoning="Hm"),
        Message("tool", "Rain", tool_call_id="c1", name="weather"),
    ]
    extra = {"keep_alive": "30m", "options": {"num_ctx": 16384}}
    with ollama({CHAT: lines(said(content="Rain", done=True))}, extra=extra) as one:
        assert one.model.chat(turns, tools=[WEATHER], reasoning="low", top_p=0.0).text() == "Rain"
        body = sent(one, CHAT)
        call = {"id": "c1", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
        assert body["messages"][1:] == [
            {"role": "assistant", "content": "", "tool_calls": [call], "thinking": "Hm"},
            {"role": "tool", "content": "Rain", "tool_call_id": "c1", "tool_name": "weather"},
        ]
        assert (body["think"], body["tools"], body["keep_alive"]) == ("low", [WEATHER.to_dict()], "30m")
        assert body["options"] == {"temperature": 0.0, "num_predict": 256, "top_p": 1.0, "num_ctx": 16384}


@pytest.mark.parametrize("reasoning", [True, False])
def test_thinking_can_be_switched(reasoning: bool) -> None:
    with ollama({CHAT: lines(said(done=True))}) as one:
        one.model.chat(USER, reasoning=reasoning).text()
        assert sent(one, CHAT)["think"] is reasoning


def test_thinking_that_can_not_be_switched_off_is_refused() -> None:
    """It ignores `think: false` for gpt-oss."""
    info = {"general.architecture": "gptoss"}
    with ollama({CHAT: lines(said(done=True))}, SHOWN | {"model_info": info}) as one:
        with pytest.raises(UnsupportedError, match="reasoning=False"):
            one.model.chat(USER, reasoning=False)
        one.model.chat(USER, reasoning="low").text()
        assert sent(one, CHAT)["think"] == "low"


@pytest.mark.parametrize(
    "option", [{"logit_bias": {5: 1.0}}, {"tool_choice": "required", "tools": [WEATHER]}, {"stop_tokens": [5]}]
)
def test_options_that_ollama_ignores_are_refused(option: dict[str, Any]) -> None:
    with ollama({}) as (_, model), pytest.raises(UnsupportedError, match=next(iter(option))):
        model.chat(USER, **option)


def test_an_error_during_the_stream_keeps_the_partial_result() -> None:
    answer = lines(said(content="Hi"), {"error": "an error was encountered while running the model"})
    with ollama({CHAT: answer}) as (_, model), pytest.raises(ServerError, match="was encountered") as caught:
        model.chat(USER).text()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "Hi"


def test_an_answer_that_breaks_off() -> None:
    with ollama({CHAT: lines(said(content="Hi"))}) as (_, model), pytest.raises(ServerError, match="broke off"):
        model.chat(USER).text()


def test_a_prompt_that_is_too_long_is_refused_and_not_cut() -> None:
    body = {"error": "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it"}
    with ollama({CHAT: refusal(400, body)}) as (_, model), pytest.raises(ContextLengthExceededError):
        model.chat(USER).text()


def test_a_model_that_is_not_there() -> None:
    gone = refusal(404, {"error": "model 'gone' not found"})
    answers = {"/v1/models": [reply(MODELS)], "/api/version": [reply({"version": "1"})], "/api/show": [gone]}
    with serving(answers, native=False) as server, pytest.raises(ModelNotFoundError, match="ollama pull gone"):
        load_model(server.address, model="gone")
    empty = {"/v1/models": [reply({"object": "list", "data": None})], "/api/version": [reply({"version": "1"})]}
    with serving(empty, native=False) as server, pytest.raises(ModelNotFoundError, match="ollama pull"):
        load_model(server.address)


def test_labels_are_taken_from_the_likeliest_tokens() -> None:
    tops = [{"token": " good", "logprob": -0.5}, {"token": " bad", "logprob": -1.5}]
    entry = {"token": " good", "logprob": -0.5, "top_logprobs": tops}
    with ollama({GENERATE: reply({"response": " good", "logprobs": [entry], **LAST})}) as one:
        (result,) = one.model.classify(["It is"], labels=[" good", " bad"])
        assert result.label == " good"
        assert result.scores == pytest.approx({" good": 0.731059, " bad": 0.268941}, abs=1e-6)
        with pytest.raises(UnsupportedError, match="zebra"):
            one.model.classify(["It is"], labels=[" good", " zebra"])
        body = sent(one, GENERATE)
        assert (body["raw"], body["top_logprobs"], body["stream"]) == (True, 20, False)


def test_the_middle_is_filled_in_by_the_model_s_template() -> None:
    last = {**LAST, "response": ""}
    able = SHOWN | {"capabilities": ["completion", "insert"]}
    answers = {"/api/version": reply({"version": "0.13.0"}), "/api/show": reply(able)}
    answers[GENERATE] = lines({"model": "qwen3", "response": "x + 1", "done": False}, last)
    with recorded(MODELS, answers) as ollama:
        assert "infill" in ollama.model.capabilities
        assert ollama.model.infill("return ", "\n", max_tokens=8).text() == "x + 1"
        sent = ollama.sent(GENERATE)
        assert (sent["prompt"], sent["suffix"], "raw" in sent) == ("return ", "\n", False)
        with pytest.raises(UnsupportedError, match="suffix"):
            ollama.model.infill("return ", "")


def test_long_texts_are_truncated_only_on_request() -> None:
    answers = {
        "/api/version": reply({"version": "0.13.0"}),
        "/api/show": reply(SHOWN | {"capabilities": ["embedding"]}),
    }
    answers["/v1/embeddings"] = reply({"data": [{"index": 0, "embedding": [1.0]}]})
    answers["/api/embed"] = reply({"model": "qwen3", "embeddings": [[0.5, 0.5]], "prompt_eval_count": 3})
    with recorded(MODELS, answers) as ollama:
        for truncate in (False, True):
            assert ollama.model.embed(["a"], truncate=truncate) == [[0.5, 0.5]]  # type: ignore[attr-defined]
            assert ollama.sent("/api/embed") == {"input": ["a"], "truncate": truncate}
