# SPDX-License-Identifier: Apache-2.0
"""Tools for models whose chat template doesn't support them: a prompt that lists them, and calls as text.

`markup` reads the answer with the openers `GENERIC_OPENERS`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..types import Attachment, Message, Tool


def generic_tool_prompt(tools: Sequence[Tool]) -> str:
    """Return a text that lists the tools and says how to call them, in the format of Hermes.

    Many models were trained on that format.
    """
    listed = "\n".join(json.dumps(tool.to_dict(), ensure_ascii=False) for tool in tools)
    return (
        "# Tools\n\n"
        "You may call functions to help with the user's request. "
        "These functions are available, each described by a JSON object:\n"
        f"<tools>\n{listed}\n</tools>\n\n"
        "To call a function, answer with its name and its arguments as a JSON object within <tool_call> tags, "
        "one pair of tags for each call:\n"
        '<tool_call>\n{"name": "function-name", "arguments": {"argument-name": "value"}}\n</tool_call>\n'
        "The results come back within <tool_response> tags. Answer without a call where none is needed."
    )


def calls_as_text(messages: Sequence[Message]) -> list[Message]:
    """Write calls and results as `generic_tool_prompt` describes them. Consecutive results become one user message."""
    turns: list[Message] = []
    after_result = False
    for message in messages:
        result = message.role == "tool"
        parts = list(message.parts)
        if message.tool_calls:
            calls = [
                json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
                for call in message.tool_calls
            ]
            text = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
            parts.append(f"\n{text}" if message.text else text)
        elif result:
            parts = ["<tool_response>\n", *parts, "\n</tool_response>"]
        if after_result and message.role in ("tool", "user"):
            # Templates without tools often demand that user and assistant alternate.
            turns[-1] = replace(turns[-1], content=joined([*turns[-1].parts, "\n", *parts]))
        else:
            role = "user" if result else message.role
            turns.append(
                Message(role, joined(parts), name=None if result else message.name, reasoning=message.reasoning)
            )
        after_result = result or (after_result and message.role == "user")
    return turns


def text_before(messages: Sequence[Message], text: str | Sequence[str | Attachment], role: str) -> list[Message]:
    """Add `text` to the first message if it has the role `role`, otherwise as a message before it."""
    first = messages[0] if messages else None
    new = Message(role, text)
    if first is not None and first.role == role:
        # The caller's system text comes first, as in templates with tools.
        pair = (first, new) if role in ("system", "developer") else (new, first)
        return [replace(first, content=joined(contents(pair))), *messages[1:]]
    return [new, *messages]


def contents(messages: Iterable[Message]) -> list[str | Attachment]:
    """Return the contents of the messages, with an empty line between two of them."""
    parts: list[str | Attachment] = []
    for message in messages:
        if message.content:
            parts += ["\n\n", *message.parts] if parts else message.parts
    return parts


def joined(parts: Sequence[str | Attachment]) -> str | tuple[str | Attachment, ...]:
    """Return the parts as the content of a message: one string, or a tuple if attachments are among them."""
    return "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else tuple(parts)
