# SPDX-License-Identifier: Apache-2.0
"""What a request of the http backend has to send, and what reads the answer: the `prepared` of a Request."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...request import Request
from .protocol import llama_api, openai_api
from .transport.transfer import Call, Reader


def _one() -> int:
    return 1


@dataclass(frozen=True)
class Streamed:
    """A request whose answer is streamed.

    Attributes:
        call: What is sent.
        reader: Makes what reads the answer.
        fields: The body, where the server takes the prompts of several such requests as a list; else None.
        running: How many answers of it are still to come.
    """

    call: Call
    reader: Callable[[Request], Reader]
    fields: Mapping[str, Any] | None = None
    running: Callable[[], int] = _one


@dataclass(frozen=True)
class Rendered:
    """A request whose prompt is asked for first; `answer` makes of that answer what is then to be sent."""

    template: Call
    answer: Callable[[Any], Streamed]


@dataclass(frozen=True)
class Fetched:
    """A request whose whole answer goes to `take`."""

    call: Call
    take: Callable[[Any], None]

    def received(self, request: Request, answer: Any) -> None:
        """Give the answer to `take`, and measure what it cost."""
        self.take(answer)
        measure(request, answer)


def measure(request: Request, answer: Any) -> None:
    """Take the metrics of an operation that generates no text from the server's whole answer."""
    request.measure(prefill_seconds=time.monotonic() - request.started)
    if isinstance(answer, Mapping):
        llama_api.measure(request, answer.get("timings"))
        openai_api.measure(request, answer.get("usage"))
    request.measure(generated_tokens=0, decode_seconds=0.0)
