# SPDX-License-Identifier: Apache-2.0
"""parallel_tool_calls=False, on a model that always calls two tools."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk

from langchain_inference_bridge import ChatInferenceBridge

from ...parts.servers.answering import Everything


def get_weather(city: str) -> str:
    """Get the weather."""
    return city


@pytest.fixture
def chat() -> Iterator[ChatInferenceBridge]:
    with Everything() as model:
        yield ChatInferenceBridge(text_model=model)


async def answered(chat: ChatInferenceBridge, how: str, parallel: bool | None) -> AIMessage:
    bound = chat.bind_tools([get_weather], parallel_tool_calls=parallel)
    if how == "invoke":
        return bound.invoke("Hi")
    if how == "ainvoke":
        return await bound.ainvoke("Hi")
    chunks = list(bound.stream("Hi")) if how == "stream" else [chunk async for chunk in bound.astream("Hi")]
    whole, *rest = chunks
    for chunk in rest:
        whole += chunk  # type: ignore[assignment]
    assert isinstance(whole, AIMessageChunk)
    return whole


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize(
    ("parallel", "cities"), [(False, ["Paris"]), (True, ["Paris", "Rome"]), (None, ["Paris", "Rome"])]
)
async def test_an_answer_has_as_many_calls_as_are_allowed(
    chat: ChatInferenceBridge, how: str, parallel: bool | None, cities: list[str]
) -> None:
    message = await answered(chat, how, parallel)
    assert [call["args"] for call in message.tool_calls] == [{"city": city} for city in cities]
    assert message.invalid_tool_calls == []
    assert message.text == "I look it up. END"
    if parallel is False:
        assert message.response_metadata["finish_reason"] == "tool_calls"


def test_a_value_that_is_not_a_bool_is_refused(chat: ChatInferenceBridge) -> None:
    with pytest.raises(TypeError, match="parallel_tool_calls"):
        chat.invoke("Hi", parallel_tool_calls="no")
