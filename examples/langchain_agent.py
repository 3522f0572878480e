# SPDX-License-Identifier: Apache-2.0
"""LangGraph's prebuilt agent on a local model (pip install langchain)."""

from __future__ import annotations

from collections.abc import Callable

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call

from langchain_inference_bridge import ChatInferenceBridge


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return {"Paris": "21 degrees, sunny"}.get(city, "unknown")


@wrap_model_call
def call_first(request: ModelRequest, answer: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
    """Force a call in the first turn: such a small model does not call tools by itself. Larger ones need no force."""
    return answer(request.override(tool_choice="any" if len(request.messages) == 1 else None))


with ChatInferenceBridge(model="llama_cpp:SmolLM2-135M-Instruct.Q4_1", temperature=0, max_tokens=64) as model:
    agent = create_agent(model, [get_weather], middleware=[call_first])
    question = {"role": "user", "content": "What is the weather in Paris? Answer in one sentence."}
    for message in agent.invoke({"messages": [question]})["messages"]:
        print(f"{message.type}: {message.text or [call['args'] for call in message.tool_calls]}")
