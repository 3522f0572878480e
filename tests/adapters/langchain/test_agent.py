# SPDX-License-Identifier: Apache-2.0
"""LangGraph's prebuilt agent on a real model: streamed token by token, asynchronously, and with a structured answer."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import AIMessageChunk
from pydantic import BaseModel

from langchain_inference_bridge import ChatInferenceBridge

ASKED = "What is the weather in Paris? Answer in one sentence."


@pytest.fixture(scope="module")
def chat(demo_model_path: Path) -> Iterator[ChatInferenceBridge]:
    with ChatInferenceBridge(
        model=f"llama_cpp:{demo_model_path}", context_length=512, threads=1, temperature=0, max_tokens=48
    ) as chat:
        yield chat
        gc.collect()


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"21 degrees and sunny in {city}"


class CallFirst(AgentMiddleware[Any, Any]):
    """Has the model call a tool in its first turn: so small a one does not do so unasked."""

    def _asked(self, request: ModelRequest) -> ModelRequest:
        return request.override(tool_choice="any" if len(request.messages) == 1 else None)

    def wrap_model_call(self, request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
        return handler(self._asked(request))

    async def awrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        return await handler(self._asked(request))


@pytest.fixture(scope="module")
def agent(chat: ChatInferenceBridge) -> Any:
    return create_agent(chat, [get_weather], middleware=[CallFirst()])


def question() -> Any:
    return {"messages": [{"role": "user", "content": ASKED}]}


def said(chunks: list[Any]) -> tuple[list[Any], str]:
    """The tool calls in the chunks of the model's two turns, and the text of the second."""
    first, second = (
        [chunk for chunk in chunks if chunk.id == id] for id in dict.fromkeys(chunk.id for chunk in chunks)
    )
    assert len(second) > 3
    return (first[0] + first[1:]).tool_calls, (second[0] + second[1:]).text


async def test_an_agent_is_streamed_token_by_token(agent: Any) -> None:
    steps = [message for message, _ in agent.stream(question(), stream_mode="messages")]
    asteps = [message async for message, _ in agent.astream(question(), stream_mode="messages")]
    for chunks in (steps, asteps):
        calls, text = said([chunk for chunk in chunks if isinstance(chunk, AIMessageChunk)])
        assert [(call["name"], call["args"]) for call in calls] == [("get_weather", {"city": "Paris"})]
        assert "21 degrees" in text


async def test_an_agent_answers_asynchronously_as_it_does_else(agent: Any) -> None:
    messages = agent.invoke(question())["messages"]
    amessages = (await agent.ainvoke(question()))["messages"]
    assert [message.text for message in messages] == [message.text for message in amessages]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]


class Weather(BaseModel):
    degrees: int


def test_an_agents_answer_in_a_schema(chat: ChatInferenceBridge) -> None:
    agent: Any = create_agent(chat, [], response_format=Weather)
    answer = agent.invoke({"messages": [{"role": "user", "content": "It is 21 degrees. Give the degrees as JSON."}]})
    assert isinstance(answer["structured_response"], Weather)
