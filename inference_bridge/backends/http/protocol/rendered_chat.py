# SPDX-License-Identifier: Apache-2.0
"""Chats on llama-server through its own endpoints: /apply-template renders them, /completion answers.

In this way the tokens of a chat have ids, and a forced call has no text before it. llama-server's /chat/completions
returns ids only with probabilities, allows any amount of text before a forced call, and does not force a named tool.
It is used only for what it alone can do: reading the reasoning and the calls of models whose template has its own
notation for them, and downloading images.

Images and sound on this machine are sent once, to /completion. The template is rendered with placeholders, each of
which becomes a marker in the prompt. The server replaces the markers by the media that are sent with the prompt, in
their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ....chat.assembler import TextAssembler
from ....chat.attachments import content
from ....chat.generic_tools import calls_as_text, generic_tool_prompt, text_before
from ....chat.markup import GENERIC_OPENERS, ChatFormat, chat_output
from ....options import GenerateConfig, is_forced
from ....request import Request
from ....types import Attachment, Message, Tool
from ..facts import ServerFacts
from . import llama_api
from .fields import as_base64
from .llama_api import CompletionReader
from .openai_api import message_fields, reasoning_variables

_PLAIN = ChatFormat()
_GENERIC = ChatFormat(openers=GENERIC_OPENERS, bare=True)


class RenderedChat:
    """The requests of one chat, and the reader of its answer. Create it with `of`."""

    def __init__(
        self,
        facts: ServerFacts,
        messages: Sequence[Message],
        config: GenerateConfig,
        sent_schema: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        self._config = config
        self._tools = callable_tools(config)
        self._forced = bool(self._tools) and is_forced(config.tool_choice)
        self._generic = not facts.knows_tools
        turns = list(messages)
        if self._generic:
            turns = calls_as_text(turns)
            if self._tools:
                turns = text_before(turns, generic_tool_prompt(self._tools), "system")
        self._media = [as_base64(content(one) or b"") for turn in turns for one in turn.attachments]
        self._turns = [_with_stand_ins(turn) for turn in turns]
        self._schema = config.json_schema
        if self._forced:
            chosen = [tool for tool in self._tools if config.tool_choice in ("required", tool.name)]
            schema = calls_schema(chosen)
            self._schema = None if schema is None else sent_schema(schema)

    @classmethod
    def of(
        cls,
        facts: ServerFacts,
        messages: Sequence[Message],
        config: GenerateConfig,
        sent_schema: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda schema: schema,
    ) -> RenderedChat | None:
        """Return the chat; None if /chat/completions must answer it. `sent_schema`: returns the schema to send."""
        attachments = [one for message in messages for one in message.attachments]
        renders = facts.renders or (config.grammar is not None and config.reasoning is False)
        if not renders or (attachments and not facts.takes_media) or not all(map(_is_here, attachments)):
            return None
        chat = cls(facts, messages, config, sent_schema)
        if chat._tools and not chat._generic and not chat._forced:
            return None
        if chat._forced and chat._schema is None:
            return None
        return chat

    def template_fields(self) -> dict[str, Any]:
        """Return the body of a request to /apply-template."""
        out: dict[str, Any] = {"messages": [message_fields(turn, "llama.cpp") for turn in self._turns]}
        if self._tools and not self._generic:
            out["tools"] = [tool.to_dict() for tool in self._tools]
        variables = dict(self._config.template_options or {})
        if self._config.reasoning is not None:
            variables = {**reasoning_variables(self._config.reasoning), **variables}
        if variables:
            out["chat_template_kwargs"] = variables
        return out

    def completion_fields(self, prompt: str) -> dict[str, Any]:
        """Return the body of a request to /completion, for the rendered `prompt`."""
        config = replace(self._config, json_schema=self._schema)
        if self._media:
            return llama_api.completion({"prompt_string": prompt, "multimodal_data": self._media}, config)
        return llama_api.completion(prompt, config)

    def reader(self, request: Request) -> CompletionReader:
        return CompletionReader(request, self._output())

    def _output(self) -> TextAssembler | None:
        stops = tuple(self._config.stop or ())
        if self._forced:
            return chat_output(_PLAIN, stops=stops, tools=self._tools, forced_call=True)
        if self._tools:
            return chat_output(_GENERIC, stops=stops, tools=self._tools)
        return None


def why_no_constraint(facts: ServerFacts, config: GenerateConfig, rendered: RenderedChat | None) -> str:
    """Return why an answer in this chat can't be held to a grammar, and what to do instead; "" if it can be.

    /chat/completions takes a grammar too, but no tools beside it, and reasoning would have to follow it.
    """
    if callable_tools(config):
        return "the answer could not be a call: leave the tools out, or set tool_choice='none'"
    if rendered is not None:
        return ""
    if "reasoning" in facts.capabilities and config.reasoning is not False:
        instead = "set reasoning=False" if facts.reasons_if_asked else "load the model with llama_cpp"
        return f"the model reasons, and llama-server would hold its reasoning to it too: {instead}"
    if facts.renders:
        return "llama-server fetches URLs for chats without it only: send images as data, to a recent llama-server"
    return "llama-server does not tell the model's chat template: use generate()"


def _is_here(attachment: Attachment) -> bool:
    return attachment.url is None or attachment.url.lower().startswith("data:")


def _with_stand_ins(turn: Message) -> Message:
    if not turn.attachments:
        return turn
    return replace(
        turn,
        content=[part if isinstance(part, str) else Attachment(part.type, data=b"\0") for part in turn.parts],
    )


def callable_tools(config: GenerateConfig) -> list[Tool]:
    """Return the tools that may be called."""
    if config.tool_choice == "none":
        return []
    return [tool for tool in config.tools or () if isinstance(tool, Tool)]


def calls_schema(tools: Sequence[Tool]) -> Mapping[str, Any] | None:
    """Return the JSON Schema of a call of one of `tools`. None if they have different definitions of the same name."""
    definitions: dict[str, dict[str, Any]] = {}
    calls = []
    for tool in tools:
        parameters = dict(tool.parameters)
        for name in ("$defs", "definitions"):
            # References are read from the root of the whole schema.
            for key, value in parameters.pop(name, {}).items():
                if definitions.setdefault(name, {}).setdefault(key, value) != value:
                    return None
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {**(calls[0] if len(calls) == 1 else {"anyOf": calls}), **definitions}
