# SPDX-License-Identifier: Apache-2.0
"""What the http backend sends for a Request, and what reads the answer. A job is the `prepared` of a Request."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...request import Request
from .protocol import llama_api, openai_api
from .transport.call import Call, Reader


def _one() -> int:
    return 1


@dataclass(frozen=True)
class Streamed:
    """A request whose answer is streamed.

    Attributes:
        call: The HTTP request.
        reader: Creates the reader of the answer.
        fields: The body, if the server accepts the prompts of several such requests as a list; otherwise None.
        running: Returns the number of answers that have not ended.
    """

    call: Call
    reader: Callable[[Request], Reader]
    fields: Mapping[str, Any] | None = None
    running: Callable[[], int] = _one


@dataclass(frozen=True)
class Rendered:
    """A request whose prompt the server must render first. `answer` makes the next request from the rendered prompt."""

    template: Call
    answer: Callable[[Any], Streamed]


@dataclass(frozen=True)
class Fetched:
    """A request whose answer is not streamed. `take` is called with the answer."""

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
