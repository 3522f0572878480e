# SPDX-License-Identifier: Apache-2.0
"""One prompt of llm's, answered by a TextModel.

This is where the models that llm lists become loaded ones, so all that a listing does not need is imported here.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING, Any, cast

import click
import llm
from llm.parts import StreamEvent

from inference_bridge import BridgeError, GenerateConfig, TextModel, Token, Tool, ToolCallDelta
from inference_bridge.authoring import cut_off, join_tool_calls, settled
from inference_bridge.streams import AsyncTokenStream, TokenStream

from . import loaded
from .errors import shown
from .garbage import is_command
from .messages import to_messages
from .options import LOAD_OPTIONS

if TYPE_CHECKING:
    from .models import Bridge


def answer(user: Bridge, prompt: llm.Prompt, response: llm.Response, key: str | None) -> Iterator[str | StreamEvent]:
    """What the model of `user` says to `prompt`; `response` is told of its calls, usage and end."""
    with shown():
        model = loaded.load(user.offer, key, user, _load_options(prompt))
        config = _config(model, prompt)
        with model.chat(to_messages(prompt.messages), config) as tokens:
            told = _Answer(response, config)
            for token in tokens:
                yield from told.events(token)
            told.end(tokens)


async def aanswer(
    user: Bridge, prompt: llm.Prompt, response: llm.AsyncResponse, key: str | None
) -> AsyncGenerator[str | StreamEvent, None]:
    with shown():
        model = await loaded.aload(user.offer, key, user, _load_options(prompt))
        config = _config(model, prompt)
        async with model.achat(to_messages(prompt.messages), config) as tokens:
            told = _Answer(response, config)
            async for token in tokens:
                for event in told.events(token):
                    yield event
            told.end(tokens)


def _load_options(prompt: llm.Prompt) -> dict[str, Any]:
    return prompt.options.model_dump(exclude_none=True, include=set(LOAD_OPTIONS))


def _config(model: TextModel, prompt: llm.Prompt) -> GenerateConfig:
    """What the user set, over what the configured name sets, over what holds in llm where neither does."""
    asked = GenerateConfig(
        json_schema=cast("dict[str, Any] | None", prompt.schema),  # llm has made one of a pydantic model by now
        tools=[Tool(tool.name, tool.description or "", tool.input_schema) for tool in prompt.tools] or None,
        **prompt.options.model_dump(exclude_none=True, exclude=set(LOAD_OPTIONS)),
    )
    choice = asked.tool_choice or model.defaults.tool_choice
    if choice not in (None, "auto", "none") and prompt.messages[-1].role == "tool":
        # llm sends a chain's options with each turn, so a forced call would be forced again without end.
        asked = asked.with_options({"tool_choice": "auto"})
    return settled(asked, model)


class _Answer:
    """Tells llm of one operation: its tokens as events, and at the end what else there is to say."""

    def __init__(self, response: llm.Response | llm.AsyncResponse, config: GenerateConfig) -> None:
        self._response = response
        self._config = config
        self._text: list[str] = []
        self._calls: dict[int, list[ToolCallDelta]] = {}
        self._ids: dict[int, str] = {}

    def events(self, token: Token) -> Iterator[StreamEvent]:
        delta = token.tool_call
        if delta is None:
            if token.text:
                if token.kind == "text":
                    self._text.append(token.text)
                yield StreamEvent("reasoning" if token.kind == "reasoning" else "text", token.text)
            return
        # Events without an id would be taken for another call than the one that add_tool_call tells of.
        id = self._ids.setdefault(delta.index, delta.id or f"call_{secrets.token_hex(8)}")
        self._calls.setdefault(delta.index, []).append(delta)
        if delta.name:
            yield StreamEvent("tool_call_name", delta.name, tool_call_id=id)
        if delta.arguments:
            yield StreamEvent("tool_call_args", delta.arguments, tool_call_id=id)

    def end(self, stream: TokenStream | AsyncTokenStream) -> None:
        for index, deltas in sorted(self._calls.items()):
            calls = join_tool_calls(deltas)
            if not calls:
                raise BridgeError(
                    f"the call of tool {deltas[0].name!r} is incomplete (finish reason {stream.finish_reason!r}): "
                    "allow more max_tokens, or load the model with a larger context_length"
                )
            self._response.add_tool_call(llm.ToolCall(calls[0].name, calls[0].arguments, self._ids[index]))
        metrics = stream.metrics
        if stream.finish_reason == "length" and is_command():
            why = cut_off(self._config, metrics.generated_tokens)
            broken = self._config.json_schema is not None and not _is_json("".join(self._text))
            click.echo(f"Warning: {why}{' (the JSON is incomplete)' if broken else ''}", err=True)
        self._response.set_usage(
            input=metrics.prompt_tokens,
            output=metrics.generated_tokens,
            details={"cached_tokens": metrics.cached_tokens} if metrics.cached_tokens else None,
        )
        self._response.response_json = {"finish_reason": stream.finish_reason, "metrics": metrics.to_dict()}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
