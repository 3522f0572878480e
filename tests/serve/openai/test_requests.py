# SPDX-License-Identifier: Apache-2.0
"""OpenAI's requests become options of the contract. An unsupported field is refused with its name."""

from __future__ import annotations

from typing import Any

import pytest

from inference_bridge import Attachment, GenerateConfig, Message
from inference_bridge.serve.errors import RequestError
from inference_bridge.serve.openai.requests import IGNORED, chat_request, embeddings_request, text_request

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "Hi"}


def test_chat_options() -> None:
    asked = chat_request(
        CHAT
        | {
            "temperature": 1,
            "top_p": 0.5,
            "top_k": 3,
            "seed": 7,
            "max_completion_tokens": 5,
            "stop": "x",
            "logprobs": True,
            "top_logprobs": 2,
            "n": 2,
            "reasoning_effort": "none",
            "chat_template_kwargs": {"a": 1},
            "stream": True,
            "stream_options": {"include_usage": True},
            "parallel_tool_calls": True,
            "logit_bias": {},
        }
    )
    assert asked.config == GenerateConfig(
        temperature=1.0,
        top_p=0.5,
        top_k=3,
        seed=7,
        max_tokens=5,
        stop=["x"],
        logprobs=2,
        reasoning=False,
        template_options={"a": 1},
    )
    assert (asked.model, asked.choices, asked.stream, asked.include_usage) == ("m", 2, True, True)
    assert asked.messages == (Message("user", "Hi"),)


def test_tools_and_schemas() -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": parameters, "strict": True}}
    choice = {"type": "function", "function": {"name": "f"}}
    config = chat_request(CHAT | {"tools": [tool], "tool_choice": choice}).config
    assert config.tool_choice == "f"
    (made,) = config.tools or ()
    assert made.to_dict()["function"] == {"name": "f", "description": "d", "parameters": parameters}  # type: ignore[union-attr]
    schema = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": parameters}}
    assert chat_request(CHAT | {"response_format": schema}).config.json_schema == parameters
    assert chat_request(CHAT | {"response_format": {"type": "text"}}).config.json_schema is None


def test_messages() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "See"}, image]},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "2"},
    ]
    first, second, third, fourth = chat_request(CHAT | {"messages": messages}).messages
    assert first == Message("system", "Be brief.")
    assert second.content == ("See", Attachment("image/png", data=b"hi"))
    assert third.tool_calls[0].arguments == {"x": 1}
    assert (fourth.role, fourth.tool_call_id, fourth.text) == ("tool", "1", "2")


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_fields_that_clients_always_send_are_accepted(name: str) -> None:
    assert chat_request(CHAT | {name: "anything"}) == chat_request(CHAT)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0]"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"functions": []}, "functions"),
        ({"max_token": 5}, "max_token"),
    ],
)
def test_a_wrong_chat_field_is_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat_request(CHAT | change)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "attachment", "mime_type": "image/png", "path": "/etc/hostname"},
        {"type": "attachment", "mime_type": "image/png", "url": "file:///etc/hostname"},
        {"type": "image_url", "image_url": {"url": "http://10.0.0.1/secret.png"}},
        {"type": "image_url", "image_url": "file:///etc/hostname"},
        {"type": "image_url", "image_url": {"url": "/etc/hostname"}},
        {"type": "file", "file": {"file_id": "x"}},
        "text",
    ],
)
def test_a_client_cannot_name_a_file_or_url(part: Any) -> None:
    with pytest.raises(RequestError) as caught:
        chat_request(CHAT | {"messages": [{"role": "user", "content": [part]}]})
    assert caught.value.param == "messages[0]"


def test_text_prompts() -> None:
    assert text_request(TEXT).prompts == ("Hi",)
    assert text_request(TEXT | {"prompt": ["a", "b"], "logprobs": 3, "echo": False}).config.logprobs == 3


@pytest.mark.parametrize(
    "change", [{"prompt": [1, 2]}, {"prompt": []}, {"echo": True}, {"suffix": "x"}, {"best_of": 2}]
)
def test_a_wrong_text_field_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        text_request(TEXT | change)


def test_embeddings_input() -> None:
    wrong: list[dict[str, Any]] = [{"input": [[1]]}, {"input": []}, {"encoding_format": "int8"}, {"dimensions": 8}]
    asked = embeddings_request({"model": "m", "input": "a", "encoding_format": "base64"})
    assert (asked.texts, asked.base64) == (["a"], True)
    for change in wrong:
        with pytest.raises(RequestError):
            embeddings_request({"model": "m", "input": "a"} | change)
