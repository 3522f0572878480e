# SPDX-License-Identifier: Apache-2.0
"""/v1/responses through OpenAI's SDK on the real small model, and the store of responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel

import inference_bridge as ib
from inference_bridge.serve.errors import RequestError
from inference_bridge.serve.responses.requests import response_request
from inference_bridge.serve.responses.store import ResponseStore, Stored

from ...parts.servers.answering import Breaks, Everything, events
from ..conftest import Serving, running

openai = pytest.importorskip("openai", reason="the OpenAI SDK is not installed")

QUESTION = "What is 2 plus 2?"
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
GREEDY: dict[str, Any] = {"model": "small", "temperature": 0, "max_output_tokens": 24}


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(scope="module")
def address(model: ib.TextModel) -> Iterator[str]:
    with running({"small": model}) as at:
        yield at


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def chatted(model: ib.TextModel, *messages: tuple[str, str]) -> str:
    turns = [ib.Message(role, text) for role, text in messages]
    return model.chat(turns, temperature=0.0, max_tokens=24).text()


def test_a_response_is_the_answer_of_the_model(client: Any, model: ib.TextModel) -> None:
    answer = client.responses.create(**GREEDY, input=QUESTION, instructions="Be brief.", metadata={"a": "b"})
    assert answer.output_text == chatted(model, ("system", "Be brief."), ("user", QUESTION))
    assert (answer.status, answer.metadata, answer.instructions) == ("completed", {"a": "b"}, "Be brief.")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0


def test_a_stream_ends_with_the_same_response(client: Any, model: ib.TextModel) -> None:
    with client.responses.stream(**GREEDY, input=QUESTION) as stream:
        seen = list(stream)
        final = stream.get_final_response()
    assert final.output_text == chatted(model, ("user", QUESTION))
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    kinds = [event.type for event in seen if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


async def test_an_async_client_continues_a_response(address: str, model: ib.TextModel) -> None:
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        first = await client.responses.create(**GREEDY, input=QUESTION, instructions="Not carried over.")
        second = await client.responses.create(**GREEDY, input="Why?", previous_response_id=first.id)
        asked = ("user", QUESTION), ("assistant", first.output_text), ("user", "Why?")
        assert second.output_text == chatted(model, *asked)
        assert (await client.responses.retrieve(second.id)).output_text == second.output_text
        await client.responses.delete(second.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(second.id)


def test_a_response_that_is_not_stored_cannot_be_continued(client: Any) -> None:
    first = client.responses.create(**GREEDY, input=QUESTION, store=False)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**GREEDY, input="Why?", previous_response_id=first.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


def test_a_forced_function_is_called_and_its_output_answered(client: Any, model: ib.TextModel) -> None:
    first = client.responses.create(
        **GREEDY | {"max_output_tokens": 64}, input="The weather in Paris?", tools=[WEATHER], tool_choice="required"
    )
    (call,) = first.output
    assert (call.type, call.name, call.status) == ("function_call", "weather", "completed")
    with client.responses.stream(
        **GREEDY | {"max_output_tokens": 64}, input="The weather in Paris?", tools=[WEATHER], tool_choice="required"
    ) as stream:
        pieces = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        assert stream.get_final_response().output[0].arguments == call.arguments == "".join(pieces)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny"}
    continued = client.responses.create(**GREEDY, previous_response_id=first.id, input=[output])
    asked = {"role": "user", "content": "The weather in Paris?"}
    sent = client.responses.create(**GREEDY, input=[asked, call.to_dict(), output], store=False)
    assert continued.output_text == sent.output_text != ""


def test_parse_gives_an_object_of_the_schema(client: Any) -> None:
    answer = client.responses.parse(
        model="small", input="Ada is 36.", text_format=Person, max_output_tokens=100, extra_body={"seed": 1}
    )
    assert isinstance(answer.output_parsed, Person)


def test_logprobs_are_included_when_asked_for(client: Any) -> None:
    answer = client.responses.create(**GREEDY, input=QUESTION, top_logprobs=2, include=["message.output_text.logprobs"])
    (part,) = answer.output[0].content
    assert "".join(one.token for one in part.logprobs) == part.text
    assert all(len(one.top_logprobs) == 2 for one in part.logprobs)


def test_a_response_that_is_cut_off_is_incomplete(client: Any) -> None:
    answer = client.responses.create(**GREEDY | {"max_output_tokens": 2}, input=QUESTION)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    with client.responses.stream(**GREEDY | {"max_output_tokens": 2}, input=QUESTION) as stream:
        assert list(stream)[-1].type == "response.incomplete"


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_text_and_calls_are_items_in_their_order(serving: Serving, stream: bool) -> None:
    address = serving({"m": Everything()})
    answer = httpx2.post(f"{address}/v1/responses", json={"model": "m", "input": "Hi", "stream": stream})
    response = events(answer.text)[-1]["response"] if stream else answer.json()
    reasoning, message, *calls = response["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm…"}]
    assert message["content"][0]["text"] == "I look it up. END"
    assert [call["arguments"] for call in calls] == ['{"city": "Paris"}', '{"city": "Rome"}']
    assert {item["status"] for item in response["output"]} == {"completed"}
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}


def test_parallel_calls_can_be_switched_off(serving: Serving) -> None:
    address = serving({"m": Everything()})
    tools = [{"type": "function", "name": "weather", "parameters": {"type": "object"}}]
    asked = {"model": "m", "input": "Hi", "tools": tools, "parallel_tool_calls": False}
    assert len(httpx2.post(f"{address}/v1/responses", json=asked).json()["output"]) == 3
    chat: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "parallel_tool_calls": False}
    chat["tools"] = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    (choice,) = httpx2.post(f"{address}/v1/chat/completions", json=chat).json()["choices"]
    assert (len(choice["message"]["tool_calls"]), choice["finish_reason"]) == (1, "tool_calls")


def test_an_error_in_a_stream_is_a_failed_response(serving: Serving) -> None:
    address = serving({"m": Breaks()})
    answer = httpx2.post(f"{address}/v1/responses", json={"model": "m", "input": "Hi", "stream": True})
    last = events(answer.text)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert httpx2.get(f"{address}/v1/responses/{last['response']['id']}").status_code == 404


def test_the_oldest_responses_are_forgotten() -> None:
    def stored(id: str, text: str) -> Stored:
        return Stored({"id": id}, (ib.Message("user", text),))

    by_count = ResponseStore(most=2)
    for id in ("a", "b"):
        by_count.put(stored(id, ""))
    assert by_count.get("a") is not None
    by_count.put(stored("c", ""))
    assert [by_count.get(id) is not None for id in "abc"] == [True, False, True]
    by_size = ResponseStore(most_bytes=1000)
    for id in ("a", "b"):
        by_size.put(stored(id, "x" * 600))
    assert [by_size.get(id) is not None for id in "ab"] == [False, True]
    by_size.put(stored("c", "x" * 1200))  # would not fit, even if all others were forgotten
    assert [by_size.get(id) is not None for id in "bc"] == [True, False]


def test_items_are_messages_of_the_contract() -> None:
    asked = response_request(
        {
            "model": "m",
            "input": [
                {"role": "developer", "content": "A"},
                {"role": "user", "content": [{"type": "input_text", "text": "B"}]},
                {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "C"}]},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "D"},
            ],
        }
    )
    assert asked.messages == (
        ib.Message("system", "A"),
        ib.Message("user", "B"),
        ib.Message("assistant", "C", (ib.ToolCall("1", "f", {}),), reasoning="hm"),
        ib.Message("tool", "D", tool_call_id="1"),
    )


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input[0].content[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y.png"}]}]},
            "input[0].content[0]",
        ),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{"}]}, "input[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"conversation": "x"}, "conversation"),
    ],
)
def test_errors_name_the_wrong_field(wrong: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        response_request({"model": "m", "input": "Hi", **wrong})
    assert (caught.value.status, caught.value.param) == (400, param)
