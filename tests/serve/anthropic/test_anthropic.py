# SPDX-License-Identifier: Apache-2.0
"""Anthropic's SDK on the real small model; answers equal those in process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import inference_bridge as ib

from ..conftest import running

anthropic = pytest.importorskip("anthropic", reason="Anthropic's SDK is not installed")

GREEDY = {"temperature": 0}  # the SDK has no argument for it
QUESTION: list[Any] = [{"role": "user", "content": "What is 2 plus 2?"}]
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
ASK_WEATHER: dict[str, Any] = {
    "model": "small",
    "max_tokens": 64,
    "extra_body": GREEDY,
    "messages": [{"role": "user", "content": "The weather in Paris?"}],
    "tools": [WEATHER],
}


@pytest.fixture(scope="module")
def address(model: ib.TextModel) -> Iterator[str]:
    with running({"small": model}, key="secret") as at:
        yield at


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=address, api_key="secret", max_retries=0) as client:
        yield client


def test_a_message_is_the_answer_of_the_model(client: Any, model: ib.TextModel) -> None:
    answer = client.messages.create(model="small", messages=QUESTION, extra_body=GREEDY, max_tokens=16)
    here = model.chat(QUESTION, temperature=0.0, max_tokens=16).result()
    (block,) = answer.content
    assert (block.type, block.text, answer.stop_reason) == ("text", here.text, "end_turn")
    used = answer.usage
    assert used.input_tokens + used.cache_read_input_tokens == here.metrics.prompt_tokens
    assert used.output_tokens == here.metrics.generated_tokens


def test_system_texts_are_the_system_message(client: Any, model: ib.TextModel) -> None:
    system = [{"type": "text", "text": "Answer in French.", "cache_control": {"type": "ephemeral"}}]
    answer = client.messages.create(model="small", system=system, messages=QUESTION, extra_body=GREEDY, max_tokens=12)
    here = model.chat([{"role": "system", "content": "Answer in French."}, *QUESTION], temperature=0.0, max_tokens=12)
    assert answer.content[0].text == here.text()


def test_a_stream_has_the_same_text_and_ends_with_its_usage(client: Any, model: ib.TextModel) -> None:
    with client.messages.stream(model="small", messages=QUESTION, extra_body=GREEDY, max_tokens=16) as stream:
        kinds = [event.type for event in stream if event.type not in ("text", "content_block_delta")]
        message = stream.get_final_message()
    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    here = model.chat(QUESTION, temperature=0.0, max_tokens=16).result()
    assert message.content[0].text == here.text
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", here.metrics.generated_tokens)


async def test_async_clients_share_a_batch(address: str) -> None:
    async with anthropic.AsyncAnthropic(base_url=address, auth_token="secret", max_retries=0) as client:

        async def ask() -> str:
            async with client.messages.stream(
                model="small", messages=QUESTION, extra_body=GREEDY, max_tokens=16
            ) as stream:
                return "".join([text async for text in stream.text_stream])

        answers = await asyncio.gather(*(ask() for _ in range(6)))
        assert len(set(answers)) == 1
        assert answers[0]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_forced_tool_is_called(client: Any, choice: dict[str, Any]) -> None:
    answer = client.messages.create(**ASK_WEATHER, tool_choice=choice)
    (call,) = answer.content
    assert (call.type, call.name, answer.stop_reason) == ("tool_use", "weather", "tool_use")
    assert isinstance(call.input["city"], str)
    pieces = []
    with client.messages.stream(**ASK_WEATHER, tool_choice=choice) as stream:
        for event in stream:
            if event.type == "content_block_delta":
                pieces.append(event.delta.partial_json)
        message = stream.get_final_message()
    assert len(pieces) > 1
    assert message.content[0].input == call.input
    assert message.stop_reason == "tool_use"


def test_a_tool_result_is_answered(client: Any, model: ib.TextModel) -> None:
    messages: list[Any] = [
        {"role": "user", "content": "The weather in Paris?"},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "Sunny"}]},
                {"type": "text", "text": "Tell me."},
            ],
        },
    ]
    answer = client.messages.create(
        model="small",
        messages=messages,
        tools=[WEATHER],
        tool_choice={"type": "none"},
        extra_body=GREEDY,
        max_tokens=12,
    )
    here = model.chat(
        [
            ib.Message("user", "The weather in Paris?"),
            ib.Message("assistant", tool_calls=[ib.ToolCall("toolu_1", "weather", {"city": "Paris"})]),
            ib.Message("tool", "Sunny", tool_call_id="toolu_1"),
            ib.Message("user", "Tell me."),
        ],
        tools=[ib.Tool("weather", WEATHER["description"], WEATHER["input_schema"])],
        tool_choice="none",
        temperature=0.0,
        max_tokens=12,
    )
    assert answer.content[0].text == here.text()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_sequence_ends_the_text_and_is_named(client: Any, model: ib.TextModel, streamed: bool) -> None:
    whole = model.chat(QUESTION, temperature=0.0, max_tokens=16).text()
    stop = whole[4:6]
    ask = {"model": "small", "messages": QUESTION, "extra_body": GREEDY, "max_tokens": 16}
    if streamed:
        with client.messages.stream(**ask, stop_sequences=["unlikely", stop]) as stream:
            answer = stream.get_final_message()
    else:
        answer = client.messages.create(**ask, stop_sequences=["unlikely", stop])
    assert answer.content[0].text == whole[: whole.index(stop)]
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)


def test_max_tokens_is_the_stop_reason(client: Any) -> None:
    answer = client.messages.create(model="small", messages=QUESTION, extra_body=GREEDY, max_tokens=2)
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 2)


def test_a_repeated_prompt_is_counted_as_cached(client: Any) -> None:
    long = [{"role": "user", "content": "Say yes. " * 50}]
    first, second = (client.messages.create(model="small", messages=long, max_tokens=1).usage for _ in range(2))
    assert second.cache_read_input_tokens > 0.9 * (first.input_tokens + first.cache_read_input_tokens)


def test_output_format_is_a_schema_that_holds(client: Any) -> None:
    answer = client.messages.create(
        model="small",
        messages=[{"role": "user", "content": "Ada is 36."}],
        max_tokens=60,
        output_config={"format": {"type": "json_schema", "schema": {"type": "object", "additionalProperties": False}}},
    )
    assert answer.content[0].text == "{}"


def test_count_tokens_agrees_with_the_usage_of_messages(client: Any) -> None:
    conversation = {"model": "small", "system": "Be brief.", "messages": QUESTION, "tools": [WEATHER]}
    count = client.messages.count_tokens(**conversation).input_tokens
    used = client.messages.create(**conversation, max_tokens=1).usage
    assert count == used.input_tokens + used.cache_read_input_tokens


def test_errors_are_the_sdks_own(client: Any, address: str) -> None:
    with pytest.raises(anthropic.NotFoundError, match="small"):
        client.messages.create(model="smal", messages=QUESTION, max_tokens=1)
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model="small", messages=[{"role": "user", "content": "word " * 2000}], max_tokens=1)
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.BadRequestError, match="image"):
        client.messages.create(
            model="small",
            max_tokens=1,
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
                    ],
                }
            ],
        )
    stranger = anthropic.Anthropic(base_url=address, api_key="wrong", max_retries=0)
    with stranger, pytest.raises(anthropic.AuthenticationError) as refused:
        stranger.messages.create(model="small", messages=QUESTION, max_tokens=1)
    assert refused.value.body["error"]["type"] == "authentication_error"


def test_models_are_listed(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").type == "model"
