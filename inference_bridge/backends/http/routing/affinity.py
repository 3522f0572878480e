# SPDX-License-Identifier: Apache-2.0
"""Remembers which server has the beginning of a conversation in its prefix cache."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from ....types import Attachment, Message

REMEMBERED = 4096
"""Maximum number of remembered conversations. The least recently used one is forgotten first."""


def prefixes(messages: Sequence[Message]) -> list[int]:
    """Return a number for each beginning of the conversation: for its first message, for its first two, …"""
    out: list[int] = []
    so_far = 0
    for message in messages:
        said = message.role, _content(message), message.reasoning, message.tool_call_id, _calls(message)
        so_far = hash((so_far, said))
        out.append(so_far)
    return out


class Affinity:
    """Remembers the server of each conversation. Thread-safe.

    Only the whole conversation that was sent is remembered. The next turn begins with it, so its server is found. A
    new conversation that shares only the system prompt with others is not found, and any server may get it.
    """

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._servers: OrderedDict[int, int] = OrderedDict()
        self._remembered = remembered
        self._lock = threading.RLock()

    def server(self, conversation: Sequence[int]) -> int | None:
        """Return the server of the longest remembered beginning; None if there is none."""
        with self._lock:
            for one in reversed(conversation):
                if one in self._servers:
                    self._servers.move_to_end(one)
                    return self._servers[one]
        return None

    def remember(self, conversation: Sequence[int], server: int) -> None:
        """Record that a conversation was sent to the server. `conversation`: the result of `prefixes`."""
        if not conversation:
            return
        with self._lock:
            self._servers[conversation[-1]] = server
            self._servers.move_to_end(conversation[-1])
            if len(self._servers) > self._remembered:
                self._servers.popitem(last=False)


def _content(message: Message) -> tuple[object, ...]:
    return tuple(_attachment(part) if isinstance(part, Attachment) else part for part in message.parts)


def _attachment(part: Attachment) -> tuple[object, ...]:
    """Return what identifies an attachment. No file is read."""
    return part.type, part.data, part.path, part.url


def _calls(message: Message) -> tuple[object, ...]:
    return tuple((call.id, call.name) for call in message.tool_calls)
