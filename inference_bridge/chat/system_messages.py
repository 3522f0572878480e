# SPDX-License-Identifier: Apache-2.0
"""Moves system messages from places in which many chat templates refuse or omit them.

Most templates show one system message, and only as the first message. Some ignore a second one, one later in the
conversation, or the role "developer".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..types import Message
from .generic_tools import contents, joined

ROLES = ("system", "developer")


def are_usual(messages: Sequence[Message]) -> bool:
    """Return whether the only system message, if there is one, is the first of several messages."""
    later = any(message.role in ROLES for message in messages[1:])
    return not later and messages[0].role != "developer" and (messages[0].role != "system" or len(messages) > 1)


def usual(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation with its system messages where every template shows them.

    The system messages at the beginning are joined into one. A later system message is added to the user message that
    follows it directly; otherwise to the user message directly before it; otherwise it becomes a user message. A
    conversation of system messages alone becomes one user message.
    """
    leading = 0
    while leading < len(messages) and messages[leading].role in ROLES:
        leading += 1
    if leading == len(messages):
        return [Message("user", joined(contents(messages)))]
    turns = [Message("system", joined(contents(messages[:leading])))] if leading else []
    waiting: list[Message] = []
    for message in messages[leading:]:
        if message.role in ROLES:
            waiting.append(message)
            continue
        if waiting and message.role == "user":
            message = replace(message, content=joined(contents([*waiting, message])))
        elif waiting:
            _append(turns, waiting)
        waiting = []
        turns.append(message)
    if waiting:
        _append(turns, waiting)
    return turns


def lost(messages: Sequence[Message], prompt: str) -> bool:
    """Return whether the prompt lacks the text of a system message."""
    parts = (part for message in messages if message.role in ROLES for part in message.parts)
    texts = (part.strip() for part in parts if isinstance(part, str))
    return any(text not in prompt for text in texts)


def _append(turns: list[Message], waiting: Sequence[Message]) -> None:
    if turns and turns[-1].role == "user":
        turns[-1] = replace(turns[-1], content=joined(contents([turns[-1], *waiting])))
    else:
        turns.append(Message("user", joined(contents(waiting))))
