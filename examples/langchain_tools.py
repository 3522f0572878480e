# SPDX-License-Identifier: Apache-2.0
"""A loop with a tool: the model calls a function, gets its result, and answers."""

from __future__ import annotations

from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.tools import tool

from langchain_inference_bridge import ChatInferenceBridge


@tool
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return {"Paris": "21 degrees, sunny"}.get(city, "unknown")


with ChatInferenceBridge(model="llama_cpp:SmolLM2-135M-Instruct.Q4_1", temperature=0, max_tokens=64) as model:
    messages: list[BaseMessage] = [HumanMessage("What is the weather in Paris? Answer in one sentence.")]
    # Such a small model does not call a tool by itself, so the first turn forces a call. Larger models need no force.
    answer = model.bind_tools([get_weather], tool_choice="any").invoke(messages)
    while answer.tool_calls:
        messages += [answer, *map(get_weather.invoke, answer.tool_calls)]
        print(answer.tool_calls[0]["name"], answer.tool_calls[0]["args"])
        answer = model.bind_tools([get_weather]).invoke(messages)
    print(answer.text)
