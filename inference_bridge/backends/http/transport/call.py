# SPDX-License-Identifier: Apache-2.0
"""A request to a server, and the protocol of the objects that make Tokens from its answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ....types import Token


@dataclass(frozen=True)
class Call:
    """A request to the server.

    Attributes:
        path: The path below the server's address.
        content: The body, if there is one.
        method: The HTTP method.
        private: Texts that no error message may quote.
        lines: Whether a streamed answer has lines of JSON instead of server-sent events.
        context: Number of tokens that the model's context window holds. 0: unknown.
    """

    path: str
    content: bytes | None = None
    method: str = "POST"
    private: tuple[str, ...] = ()
    lines: bool = False
    context: int = 0

    def __repr__(self) -> str:
        return f"Call({self.method} {self.path})"

    def shorter(self, room: int) -> Call | None:
        """Return this call with max_tokens reduced to `room`. None if that is not possible, or not less."""
        fields = json.loads(self.content or b"{}")
        asked = fields.get("max_tokens")
        several = isinstance(fields.get("prompt"), list)  # the other prompts may have more room
        if several or not isinstance(asked, int) or not 0 < room < asked:
            return None
        return replace(self, content=body({**fields, "max_tokens": room}))


def body(value: Any) -> bytes:
    """Return JSON. Raises ValueError or TypeError for a value that JSON can't represent."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


class Reader(Protocol):
    """Makes Tokens from the events of a server.

    `done` is True when the answer is complete. `finish` is called when the events end. It returns the Tokens that were
    held back, and raises ServerError if the answer is not complete.
    """

    done: bool

    def read(self, event: Any) -> Sequence[Token]: ...
    def finish(self) -> Sequence[Token]: ...
