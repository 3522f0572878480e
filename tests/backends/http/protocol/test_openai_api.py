# SPDX-License-Identifier: Apache-2.0
"""Requests to OpenAI-compatible servers, and parsing of the answers, without a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference_bridge import (
    Attachment,
    GenerateConfig,
    Message,
    Request,
    ServerError,
    Token,
    Tool,
    ToolCall,
    ToolCallDelta,
    TopLogprob,
    UnsupportedError,
)
from inference_bridge.backends.http.facts import ServerFacts
from inference_bridge.backends.http.protocol.openai_api import ChatReader, CompletionReader, chat, completion
from inference_bridge.backends.http.protocol.rendered_chat import RenderedChat
from inference_bridge.backends.http.servers import SERVERS as KINDS

from ....parts.servers.fault_server import tokens_of

USER = [Message("user", "hi")]
ALWAYS = {"stream": True, "stream_options": {"include_usage": True}}


def always(server: str) -> dict[str, Any]:
    return ALWAYS | ({"return_token_ids": True} if server == "vllm" else {})


SERVERS = list(KINDS)


def sent(server: str = "", **options: Any) -> dict[str, Any]:
    """The fields of the request, without those that every request has."""
    body = chat(server, USER, GenerateConfig(**options))
    return {name: value for name, value in body.items() if name not in {*always(server), "messages"}}


@pytest.mark.parametrize("server", SERVERS)
def test_unset_options_are_not_sent(server: str) -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert chat(server, USER, GenerateConfig()) == {"messages": messages, **always(server)}
    assert completion(server, "hi", GenerateConfig()) == {"prompt": "hi", **always(server)}


@pytest.mark.parametrize("server", SERVERS)
def test_fields_common_to_all_servers(server: str) -> None:
    options: dict[str, Any] = {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "frequency_penalty": 0.5,
        "seed": 3,
        "stop": ["x"],
    }
    expected = {name: value for name, value in options.items() if name in {*KINDS[server].options, "max_tokens"}}
    if server in ("mlx-lm", "llama.cpp"):
        del expected["stop"]  # which are looked for here alone
    if server == "mlx-lm":
        expected["frequency_context_size"] = 64
    if server == "llama.cpp":
        expected["timings_per_token"] = True
    assert sent(server, **{name: options[name] for name in options if name in expected or name == "stop"}) == expected


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("llama.cpp", {"top_k": 5, "min_p": 0.1, "repeat_penalty": 1.1}),
        ("vllm", {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}),
        ("sglang", {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}),
        ("mlx-lm", {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "repetition_context_size": 64}),
        ("llama-cpp-python", {"top_k": 5, "min_p": 0.1, "repeat_penalty": 1.1}),
    ],
)
def test_fields_whose_names_depend_on_the_server(server: str, expected: dict[str, Any]) -> None:
    assert sent(server, top_k=5, min_p=0.1, repeat_penalty=1.1) == expected


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("llama.cpp", {"top_k": 0, "top_p": 1.0, "repeat_penalty": 1.0}),
        ("vllm", {"top_k": -1, "top_p": 1.0, "repetition_penalty": 1.0}),
        ("mlx-lm", {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}),
    ],
)
def test_zero_is_off(server: str, expected: dict[str, Any]) -> None:
    assert sent(server, top_k=0, top_p=0.0, repeat_penalty=0.0) == expected


def test_unlimited_max_tokens() -> None:
    assert sent("", max_tokens=-1) == {}
    assert sent("llama.cpp", max_tokens=-1) == {"max_tokens": -1}
    assert sent("mlx-lm", max_tokens=-1) == {"max_tokens": 1 << 30}
    assert completion("vllm", "x", GenerateConfig(max_tokens=-1))["max_tokens"] is None


def test_seeds_fit_into_32_bits() -> None:
    assert sent("llama.cpp", seed=2**64 - 1)["seed"] == (2**64 - 1) % (2**32 - 1)


WEATHER = Tool("weather", "Tells it.", {"type": "object", "properties": {"city": {"type": "string"}}})


def test_tools() -> None:
    tools = [WEATHER.to_dict()]
    assert sent(tools=[WEATHER]) == {"tools": tools}
    assert sent(tools=[WEATHER], tool_choice="required") == {"tools": tools, "tool_choice": "required"}
    named = {"type": "function", "function": {"name": "weather"}}
    assert sent(tools=[WEATHER], tool_choice="weather") == {"tools": tools, "tool_choice": named}
    assert sent("mlx-lm", tools=[WEATHER], tool_choice="none") == {}
    strict = [tools[0] | {"function": tools[0]["function"] | {"strict": True}}]
    assert sent("vllm", tools=[WEATHER], tool_choice="weather") == {"tools": strict, "tool_choice": named}
    assert sent("vllm", tools=[WEATHER]) == {"tools": tools}
    count = Tool("count", "", {"type": "object", "properties": {"number": {"type": "integer"}}})
    (forced,) = sent("vllm", tools=[count], tool_choice="required")["tools"]
    assert forced["function"]["parameters"]["properties"]["number"].keys() == {"type", "minimum", "maximum"}
    assert sent("vllm", tools=[count]) == {"tools": [count.to_dict()]}, "what is not enforced is shown as it is"
    both = [WEATHER, Tool("clock")]
    assert sent("llama.cpp", tools=both, tool_choice="weather") == {"tools": tools, "tool_choice": "required"}


@pytest.mark.parametrize("server", ["", "vllm", "tgi"])
def test_more_stop_strings_than_servers_take_are_looked_for_here(server: str) -> None:
    stops = [f"stop {number}" for number in range(7)]
    assert sent(server, stop=stops) == {"stop": stops[:4]}
    tokens, request = answer(event(content="It may stop 6 here"), event("length"), stop=stops)
    assert ("".join(token.text for token in tokens), request.finish_reason) == ("It may ", "stop")


def test_schemas() -> None:
    schema = {"type": "object"}
    wrapped = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    assert sent("vllm", json_schema=schema) == {"response_format": wrapped}
    assert completion("vllm", "hi", GenerateConfig(json_schema=schema))["response_format"] == wrapped
    with_integer = sent("vllm", json_schema={"type": "integer"})["response_format"]["json_schema"]["schema"]
    assert with_integer.keys() == {"type", "minimum", "maximum"}
    with_properties = {"type": "object", "properties": {"a": {"type": "string"}}}
    said = sent("llama.cpp", json_schema=with_properties)["response_format"]["json_schema"]["schema"]
    assert said == with_properties | {"additionalProperties": False}


def test_tokens_to_stop_at() -> None:
    assert sent("vllm", stop_tokens=[7]) == {"stop_token_ids": [7]}
    assert sent("vllm", regex="[0-9]+") == {"structured_outputs": {"regex": "[0-9]+"}}
    assert sent("vllm", choices=["yes", "no"]) == {"structured_outputs": {"choice": ["yes", "no"]}}
    assert completion("vllm", "hi", GenerateConfig(regex="a"))["structured_outputs"] == {"regex": "a"}
    # llama-server has no such option: they are known by their ids, which come with the probabilities
    assert sent("llama.cpp", stop_tokens=[7]) == {"logprobs": True, "top_logprobs": 1}


@pytest.mark.parametrize(
    ("server", "reasoning", "expected"),
    [
        ("", "low", {"reasoning_effort": "low"}),
        ("", False, {"reasoning_effort": "none"}),
        ("vllm", False, {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}),
        (
            "llama.cpp",
            "high",
            {"chat_template_kwargs": {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}},
        ),
    ],
)
def test_reasoning(server: str, reasoning: Any, expected: dict[str, Any]) -> None:
    assert sent(server, reasoning=reasoning) == expected


def test_template_options_override_the_fields_for_reasoning() -> None:
    variables = sent("vllm", reasoning=True, template_options={"thinking": 7})["chat_template_kwargs"]
    assert variables == {"enable_thinking": True, "thinking": 7}


def messages(*given: Message, server: str = "") -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = chat(server, given, GenerateConfig())["messages"]
    return sent


def test_images_go_as_data(tmp_path: Path) -> None:
    file = tmp_path / "dot.png"
    file.write_bytes(b"dot")
    here = {"type": "image_url", "image_url": {"url": "data:image/png;base64,ZG90"}}
    there = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    parts = (
        "Look:",
        Attachment("image/png", data=b"dot"),
        Attachment("image/png", path=str(file)),
        Attachment("image/*", url="https://x/y.png"),
    )
    assert messages(Message("user", parts))[0]["content"] == [{"type": "text", "text": "Look:"}, here, here, there]


@pytest.mark.parametrize("server", SERVERS)
def test_texts_beside_an_image_stay_one(server: str) -> None:
    """Between two of them servers would put a newline."""
    parts = ("Look", ":", Attachment("image/png", data=b"dot"), "at", " ", "it")
    (message,) = messages(Message("user", parts), server=server)
    assert [part.get("text") for part in message["content"]] == ["Look:", None, "at it"]


def test_sound_goes_as_base64() -> None:
    sound = {"type": "input_audio", "input_audio": {"data": "ZG90", "format": "mp3"}}
    here = Attachment("audio/mpeg", data=b"dot"), Attachment("audio/mpeg", url="data:audio/mpeg;base64,ZG90")
    assert messages(Message("user", here))[0]["content"] == [sound, sound]


@pytest.mark.parametrize(
    ("kind", "data", "format"),
    [
        *((f"audio/{subtype}", b"RIFF", "wav") for subtype in ("wav", "x-wav", "wave", "vnd.wave", "*")),
        ("audio/mp3", b"ID3", "mp3"),
        ("audio/*", b"ID3", "mp3"),
        ("audio/flac", b"fLaC", "flac"),
    ],
)
def test_the_format_of_a_sound(kind: str, data: bytes, format: str) -> None:
    (part,) = messages(Message("user", [Attachment(kind, data=data)]))[0]["content"]
    assert part["input_audio"]["format"] == format


def test_attachments_that_cannot_go(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone.png' can't be read"):
        messages(Message("user", [Attachment("image/png", path=str(tmp_path / "gone.png"))]))
    for kind in ("application/pdf", "audio/wav"):
        with pytest.raises(UnsupportedError, match=kind):
            messages(Message("user", [Attachment(kind, url="https://x/y")]))


def test_images_for_an_older_llama_server_go_by_its_chats() -> None:
    """Its /completion may not take them: its list of models does not say that it does."""
    image = [Message("user", ["a", Attachment("image/png", data=b"dot")])]
    facts = ServerFacts("llama.cpp", native=True, renders=True)
    assert RenderedChat.of(facts, image, GenerateConfig()) is None
    rendered = RenderedChat.of(replace(facts, takes_media=True), image, GenerateConfig())
    assert rendered is not None
    assert rendered.completion_fields("a<m>")["prompt"] == {"prompt_string": "a<m>", "multimodal_data": ["ZG90"]}
    assert "ZG90" not in str(rendered.template_fields())


def test_a_conversation_with_tools() -> None:
    call = ToolCall("c1", "weather", {"city": "Ulm"})
    asked, answered = messages(
        Message("assistant", "", tool_calls=[call], reasoning="Hm."), Message("tool", "Rain.", tool_call_id="c1")
    )
    assert asked == {
        "role": "assistant",
        "content": None,
        "tool_calls": [call.to_dict()],
        "reasoning_content": "Hm.",
    }
    assert answered == {"role": "tool", "content": "Rain.", "tool_call_id": "c1"}
    (said,) = messages(Message("assistant", "I look.", tool_calls=[call]))
    assert (said["content"], said["tool_calls"]) == ("I look.", [call.to_dict()])


# ---------------------------------------------------------------- answers


def event(reason: str | None = None, logprobs: Any = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": logprobs}]}


def test_vllm_tells_ids() -> None:
    """One Token for each id, with the text on the last of an event; an end token is not counted."""

    def several(ids: list[int], reason: str | None = None, stop: Any = None, **delta: Any) -> dict[str, Any]:
        out = event(reason, **delta)
        out["choices"][0] |= {"token_ids": ids, "stop_reason": stop}
        return out

    told, _ = answer(several([], content=""), several([5], content="Hi"), several([6, 7], "length", content=" you"))
    assert told == [Token("Hi", 5), Token("", 6), Token(" you", 7)]
    tokens, request = answer(several([5], content="Hi"), several([2], "stop", content=""))
    assert (tokens, request.finish_reason) == ([Token("Hi", 5)], "stop")
    assert answer(several([5, 9], "stop", 9, content="Hi"))[0] == [Token("Hi", 5)]
    assert answer(several([5, 9], "stop", "x", content="Hi"))[0] == [Token("", 5), Token("Hi", 9)]
    assert answer(several([5, 9], "length", content="Hi"))[0] == [Token("", 5), Token("Hi", 9)]
    thought, _ = answer(several([5, 6], reasoning="Hm", content=None), several([2], "stop"))
    assert thought == [Token("", 5, kind="reasoning"), Token("Hm", 6, kind="reasoning")]


def answer(*events: dict[str, Any], **options: Any) -> tuple[list[Token], Request]:
    request = Request("chat", GenerateConfig(**options))
    return tokens_of(ChatReader(request), events), request


def test_text_and_reasoning() -> None:
    for name in ("reasoning", "reasoning_content"):
        tokens, request = answer(
            event(role="assistant", content=None), event(**{name: "Hm"}), event(content="Hi"), event("stop")
        )
        assert tokens == [Token("Hm", kind="reasoning"), Token("Hi")]
        assert request.finish_reason == "stop"


def test_both_in_one_event() -> None:
    tokens, _ = answer(event("length", reasoning_content="Hm", content="Hi"))
    assert tokens == [Token("Hm", kind="reasoning"), Token("Hi")]


def test_tool_calls() -> None:
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    second = {"index": 0, "function": {"arguments": '{"city": '}}
    third = {"index": 0, "function": {"arguments": '"Ulm"}'}}
    tokens, request = answer(*(event(tool_calls=[one]) for one in (first, second, third)), event("tool_calls"))
    assert [token.tool_call for token in tokens] == [
        ToolCallDelta(0, "c1", "weather"),
        ToolCallDelta(0, None, None, '{"city": '),
        ToolCallDelta(0, None, None, '"Ulm"}'),
    ]
    assert all(token.kind == "tool_call" and token.text == "" for token in tokens)
    assert request.finish_reason == "tool_calls"


def test_tool_calls_in_nonstandard_formats_of_servers() -> None:
    whole = {"id": "c1", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
    tokens, request = answer(event(tool_calls=[whole, whole | {"id": "c2"}]), event("stop"))
    assert tokens[1].tool_call == ToolCallDelta(1, "c2", "weather", '{"city": "Ulm"}')
    assert request.finish_reason == "tool_calls"


def test_log_probabilities() -> None:
    top = [{"token": "Hi", "id": 4, "logprob": -0.5}, {"token": "Yo", "id": 5, "logprob": -1.5, "bytes": [89, 111]}]
    entry = {"token": "Hi", "id": 4, "logprob": -0.5, "top_logprobs": top}
    tokens, _ = answer(event("stop", {"content": [entry]}, content="Hi"), logprobs=2)
    assert tokens == [Token("Hi", 4, -0.5, (TopLogprob("Hi", 4, -0.5), TopLogprob("Yo", 5, -1.5)))]


def test_several_tokens_in_one_event() -> None:
    entries = [{"token": "Hi", "logprob": -1.0}, {"token": " you", "logprob": -2.0}]
    tokens, _ = answer(event("stop", {"content": entries}, content="Hi you"), logprobs=1)
    assert tokens == [Token("Hi", None, -1.0), Token(" you", None, -2.0)]
    tokens, _ = answer(event("stop", {"content": entries}, content="Hi, you"), logprobs=1)
    assert tokens == [Token("", None, -1.0), Token("Hi, you", None, -2.0)]


def test_vllm_is_asked_for_the_texts_of_alternatives() -> None:
    """It would write "token_id:5" for each, if it was started with --return-tokens-as-token-ids."""
    assert sent("vllm", logprobs=2) == {"logprobs": True, "top_logprobs": 2, "return_tokens_as_token_ids": False}
    assert completion("vllm", "hi", GenerateConfig(logprobs=2))["return_tokens_as_token_ids"] is False


@pytest.mark.parametrize(
    "pieces",
    [
        ["<think>", "Hm", "</think>", "Hi END"],
        ["<think>\nHm\n</think>\n\nHi END"],
        ["\n", "<", "think", ">", "Hm END", "</", "think>", "\n", "Hi", " E", "ND."],
    ],
)
def test_reasoning_between_tags_is_reasoning(pieces: list[str]) -> None:
    tokens, request = answer(*(event(content=piece) for piece in pieces), event("stop"), stop=["END"])
    for kind, expected in (("reasoning", "Hm"), ("text", "Hi ")):
        assert "".join(token.text for token in tokens if token.kind == kind).startswith(expected)
    assert not any("think" in token.text or token.text == "END" for token in tokens if token.kind == "text")
    assert request.finish_reason == "stop"


def test_tags_within_an_answer_are_text() -> None:
    for pieces in (["Hi <think>", "Hm</think>"], ["<thin", "g>"], ["\n", "Hi"], ["<"]):
        tokens, _ = answer(*(event(content=piece) for piece in pieces), event("stop"))
        assert "".join(token.text for token in tokens) == "".join(pieces)
        assert {token.kind for token in tokens} == {"text"}
    tokens, _ = answer(event(reasoning="Hm"), event(content="<think>"), event("stop"))
    assert [(token.kind, token.text) for token in tokens] == [("reasoning", "Hm"), ("text", "<think>")]


def test_tags_of_tokens_with_ids_keep_their_ids() -> None:
    def one(id: int, text: str) -> dict[str, Any]:
        out = event(content=text)
        out["choices"][0]["token_ids"] = [id]
        return out

    tokens, _ = answer(one(1, "<think>"), one(2, "Hm"), one(3, "</think>"), one(4, "Hi"), event("length"))
    assert [token.id for token in tokens] == [1, 2, 3, 4]
    assert [token.text for token in tokens if token.kind == "text"][-1] == "Hi"


def test_stop_strings_never_show() -> None:
    pieces = ["Hel", "lo E", "N", "D and more"]
    tokens, request = answer(*(event(content=piece) for piece in pieces), stop=["END"])
    assert "".join(token.text for token in tokens) == "Hello "
    assert request.finish_reason == "stop"
    tokens, _ = answer(event(content="Hello EN"), event("stop"), stop=["END"])
    assert "".join(token.text for token in tokens) == "Hello EN"  # it was no stop string after all


def test_stop_strings_are_not_looked_for_in_reasoning() -> None:
    tokens, _ = answer(event(reasoning="E"), event(reasoning="ND"), event(content="Hi"), event("stop"), stop=["END"])
    assert [token.text for token in tokens] == ["E", "ND", "Hi"]


def test_stop_tokens() -> None:
    entry = {"token": "Hi", "id": 4, "logprob": -0.5}
    last = {"token": "!", "id": 9, "logprob": -0.5}
    tokens, request = answer(
        event(logprobs={"content": [entry]}, content="Hi"),
        event(logprobs={"content": [last]}, content="!"),
        stop_tokens=[9],
    )
    assert tokens == [Token("Hi", 4)]
    assert request.finish_reason == "stop"


def test_characters_cut_in_two() -> None:
    tokens, _ = answer(event(content="a\ud83d"), event(content="\ude00b"), event("stop", content="\ud83d"))
    assert [token.text for token in tokens] == ["a", "\U0001f600b", "", "\ufffd"]


def test_usage() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 5}}
    _, request = answer(event("stop"), {"choices": [], "usage": usage})
    metrics = request.metrics
    assert (metrics.prompt_tokens, metrics.generated_tokens, metrics.cached_tokens) == (9, 2, 5)
    _, request = answer(event("stop"), {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": None}})
    assert (request.metrics.prompt_tokens, request.metrics.generated_tokens) == (9, 0)


def test_timings() -> None:
    timings = {"cache_n": 4, "prompt_n": 6, "prompt_ms": 500, "predicted_n": 3, "predicted_ms": 1000}
    _, request = answer(event("stop"), {"choices": [], "timings": timings})
    metrics = request.metrics
    assert (metrics.prompt_tokens, metrics.cached_tokens, metrics.generated_tokens) == (10, 4, 3)
    assert (metrics.prefill_seconds, metrics.decode_seconds) == (0.5, 1.0)


def test_text_after_the_finish_reason_is_dropped() -> None:
    tokens, request = answer(event("length", content="Hi"), event(content=" there"))
    assert [token.text for token in tokens] == ["Hi"]
    assert request.finish_reason == "length"


def test_an_answer_without_an_end() -> None:
    with pytest.raises(ServerError, match="broke off"):
        answer(event(content="Hi"))
    with pytest.raises(ServerError, match="gave the answer up"):
        answer(event("error"))


def test_plain_completions() -> None:
    request = Request("generate", GenerateConfig(logprobs=1))
    reader = CompletionReader(request)
    logprobs = {"tokens": ["Hi"], "token_logprobs": [-0.5], "top_logprobs": [{"Yo": -1.0, "Hi": -0.5}]}
    tokens = reader.read({"choices": [{"text": "Hi", "logprobs": logprobs, "finish_reason": "length"}]})
    assert tokens == [Token("Hi", None, -0.5, (TopLogprob("Hi", None, -0.5),))]
    assert list(reader.finish()) == []
    assert request.finish_reason == "length"
