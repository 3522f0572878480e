# SPDX-License-Identifier: Apache-2.0
"""Sends a conversation of TextModel messages to an llm model.

Since llm 0.32, models read the whole conversation from `prompt.messages`. Older plugins read the
responses of the prompt's conversation instead, so both are filled.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import llm
from llm.parts import AttachmentPart, TextPart, ToolResultPart

from inference_bridge import Message

from .messages import from_messages

SyncModel: TypeAlias = llm.Model | llm.KeyModel
AsyncModel: TypeAlias = llm.AsyncModel | llm.AsyncKeyModel


def ask(model: Any, messages: Iterable[Message], *, key: str | None, **fields: Any) -> Any:
    """Return the llm.Response (llm.AsyncResponse if `model` is asynchronous) that answers `messages`.

    The model runs when the response is iterated.

    Args:
        model: The llm model.
        messages: The conversation.
        key: An API key, or the name of a key that `llm keys` stores.
        fields: The other arguments of llm.Prompt: options, schema, tools.
    """
    asynchronous = isinstance(model, AsyncModel)
    conversation: Any = (llm.AsyncConversation if asynchronous else llm.Conversation)(model=model)
    response: Any = llm.AsyncResponse if asynchronous else llm.Response
    before: list[llm.Message] = []
    turn: list[llm.Message] = []
    for message in from_messages(messages):
        turn.append(message)
        if message.role == "assistant":
            conversation.responses.append(_answered(response, model, before, turn))
            before += turn
            turn = []
    prompt = _prompt(model, before, turn, **fields)
    return response(prompt, model, model.can_stream, conversation=conversation, key=key)


def _answered(response: Any, model: Any, before: list[llm.Message], turn: list[llm.Message]) -> Any:
    """Return the response of an earlier turn, in the form in which llm loads it from its log."""
    *before_answer, answer = turn
    done = response.from_dict({"model": model.model_id, "prompt": {}, "messages": [answer.to_dict()]}, model=model)
    done.prompt = _prompt(model, before, before_answer)
    done.attachments, done.prompt.attachments = done.prompt.attachments, []
    return done


def _prompt(model: Any, before: list[llm.Message], turn: list[llm.Message], **fields: Any) -> llm.Prompt:
    parts = [part for message in turn for part in message.parts if message.role != "system"]
    system = [
        part.text
        for message in turn
        for part in message.parts
        if message.role == "system" and isinstance(part, TextPart)
    ]
    results = [
        llm.ToolResult(part.name, part.output, part.attachments, part.tool_call_id)
        for part in parts
        if isinstance(part, ToolResultPart)
    ]
    return llm.Prompt(  # type: ignore[no-untyped-call]
        "\n".join(part.text for part in parts if isinstance(part, TextPart)) or None,
        model=model,
        system="\n\n".join(system) or None,
        tool_results=results,
        attachments=[part.attachment for part in parts if isinstance(part, AttachmentPart)],
        messages=[*before, *turn],
        **fields,
    )
