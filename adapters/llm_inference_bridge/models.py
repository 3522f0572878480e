# SPDX-License-Identifier: Apache-2.0
"""A model of ours as llm's Model and AsyncModel."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import click
import llm
from llm.parts import StreamEvent

from inference_bridge import BridgeError, GenerateConfig, TextModel, Token, Tool, ToolCallDelta
from inference_bridge.model import settled
from inference_bridge.streams import AsyncTokenStream, TokenStream
from inference_bridge.types import join_tool_calls

from . import loaded, options
from .catalog import Offer
from .messages import to_messages

_ATTACHMENT_TYPES = {
    "images": frozenset({"image/gif", "image/jpeg", "image/png", "image/webp"}),
    "audios": frozenset({"audio/mpeg", "audio/wav"}),
}
"""What llm lets through to a model of that capability."""


class ShownError(llm.ModelError, click.ClickException):
    """What went wrong, as llm shows it: one line and exit code 1, in `llm chat` too, which lets ModelError through."""


class Keys:
    """The key of a model that has one: from --key, `llm keys set NAME`, or the variable its configuration names."""

    offer: Offer
    needs_key: str | None
    key: str | None
    key_env_var: str | None

    def _tell_of_key(self) -> None:
        if self.offer.key_env is not None:  # without one it may do without a key
            self.needs_key, self.key_env_var = self.offer.key_name, self.offer.key_env

    def get_key(self, explicit_key: str | None = None) -> str | None:
        if self.offer.key_name is None:
            return None
        key = self.key or llm.get_key(explicit_key, self.offer.key_name, self.offer.key_env)
        if key is None and self.offer.key_env is not None:
            raise llm.NeedsKeyException(
                f"No key found - add one using 'llm keys set {self.offer.key_name}' "
                f"or set the {self.offer.key_env} environment variable"
            )
        return key


class Bridge(Keys):
    """What all share. The model is loaded by the first prompt, and kept for those that follow."""

    can_stream = True
    attachment_types: set[str] | frozenset[str]

    class Options(options.Options):
        pass

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.model_id = offer.model_id
        self.supports_schema = "json_schema" in offer.capabilities
        self.supports_tools = "tools" in offer.capabilities
        taken = [types for name, types in _ATTACHMENT_TYPES.items() if name in offer.capabilities]
        self.attachment_types = frozenset().union(*taken)
        self._tell_of_key()

    def text_model(self) -> TextModel:
        """The loaded model. Closing it frees its memory, and the next prompt loads it again."""
        return loaded.load(self.offer, self.get_key())

    def _answer(self, prompt: llm.Prompt, response: llm.Response, key: str | None) -> Iterator[str | StreamEvent]:
        with shown():
            model = loaded.load(self.offer, key)
            with model.chat(to_messages(prompt.messages), _config(model, prompt)) as tokens:
                answer = _Answer(response)
                for token in tokens:
                    yield from answer.events(token)
                answer.end(tokens)

    async def _aanswer(
        self, prompt: llm.Prompt, response: llm.AsyncResponse, key: str | None
    ) -> AsyncGenerator[str | StreamEvent, None]:
        with shown():
            model = await loaded.aload(self.offer, key)
            async with model.achat(to_messages(prompt.messages), _config(model, prompt)) as tokens:
                answer = _Answer(response)
                async for token in tokens:
                    for event in answer.events(token):
                        yield event
                answer.end(tokens)


class InferenceBridge(Bridge, llm.Model):
    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str | StreamEvent]:
        return self._answer(prompt, response, None)


class AsyncInferenceBridge(Bridge, llm.AsyncModel):
    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.AsyncResponse, conversation: llm.AsyncConversation | None
    ) -> AsyncGenerator[str | StreamEvent, None]:
        return self._aanswer(prompt, response, None)


class RemoteInferenceBridge(Bridge, llm.KeyModel):
    """A model on a server, which may want a key."""

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
        key: str | None,
    ) -> Iterator[str | StreamEvent]:
        return self._answer(prompt, response, key)


class AsyncRemoteInferenceBridge(Bridge, llm.AsyncKeyModel):
    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
        key: str | None,
    ) -> AsyncGenerator[str | StreamEvent, None]:
        return self._aanswer(prompt, response, key)


@contextmanager
def shown() -> Iterator[None]:
    try:
        yield
    except (BridgeError, TypeError, ValueError) as error:
        raise ShownError(str(error)) from error


def _config(model: TextModel, prompt: llm.Prompt) -> GenerateConfig:
    """What the user set, over what the configured name sets, over what holds in llm where neither does."""
    asked = GenerateConfig(
        json_schema=cast("dict[str, Any] | None", prompt.schema),  # llm has made one of a pydantic model by now
        tools=[Tool(tool.name, tool.description or "", tool.input_schema) for tool in prompt.tools] or None,
        **prompt.options.model_dump(exclude_none=True),
    )
    choice = asked.tool_choice or model.defaults.tool_choice
    if choice not in (None, "auto", "none") and prompt.messages[-1].role == "tool":
        # llm sends a chain's options with each turn, so a forced call would be forced again without end.
        asked = asked.with_options({"tool_choice": "auto"})
    return settled(asked, model)


class _Answer:
    """Tells llm of one operation: its tokens as events, and at the end what else there is to say."""

    def __init__(self, response: llm.Response | llm.AsyncResponse) -> None:
        self._response = response
        self._calls: dict[int, list[ToolCallDelta]] = {}
        self._ids: dict[int, str] = {}

    def events(self, token: Token) -> Iterator[StreamEvent]:
        delta = token.tool_call
        if delta is None:
            if token.text:
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
        self._response.set_usage(
            input=metrics.prompt_tokens,
            output=metrics.generated_tokens,
            details={"cached_tokens": metrics.cached_tokens} if metrics.cached_tokens else None,
        )
        self._response.response_json = {"finish_reason": stream.finish_reason, "metrics": metrics.to_dict()}
