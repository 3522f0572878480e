# SPDX-License-Identifier: Apache-2.0
"""The latest responses, kept in memory."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from ...types import Message

MAX_RESPONSES = 1000
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Stored:
    """A response, and the conversation up to its end without the instructions."""

    response: dict[str, Any]
    messages: tuple[Message, ...]

    @property
    def size(self) -> int:
        """Approximate size in bytes."""
        texts = sum(len(json.dumps(message.to_dict())) for message in self.messages)
        return texts + len(json.dumps(self.response))


class ResponseStore:
    """Keeps the most recently used responses.

    Args:
        most: Maximum number of responses.
        most_bytes: Maximum total size in bytes.
    """

    def __init__(self, most: int = MAX_RESPONSES, most_bytes: int = MAX_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, tuple[Stored, int]] = OrderedDict()
        self._bytes = 0

    def get(self, id: str) -> Stored | None:
        """Return the response with this id, or None if it is not kept."""
        found = self._kept.get(id)
        if found is None:
            return None
        self._kept.move_to_end(id)
        return found[0]

    def put(self, stored: Stored) -> None:
        """Keep a response, and forget the least recently used ones if there are too many.

        A response that is larger than `most_bytes` is not kept.
        """
        size = stored.size
        if size > self._most_bytes:
            return
        self._kept[stored.response["id"]] = (stored, size)
        self._bytes += size
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            self.remove(next(iter(self._kept)))

    def remove(self, id: str) -> bool:
        """Forget a response. Return whether it was kept."""
        found = self._kept.pop(id, None)
        if found is None:
            return False
        self._bytes -= found[1]
        return True
