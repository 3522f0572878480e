# SPDX-License-Identifier: Apache-2.0
"""What a server is and can do, as it says itself: asked once a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..types import ModelInfo

if TYPE_CHECKING:
    from .http_connection import Connection


@dataclass(frozen=True)
class ServerFacts:
    """A server, asked.

    server        what it is: "llama.cpp", "vllm", "sglang", "llama-cpp-python", or "" for any
                  other that speaks the OpenAI-compatible API
    api           the path of that API below the server's address: "/v1"
    model         the name sent with every request; None where the server has one model only
    model_type    architecture id, "" where the server does not say
    slots         how many operations it runs at once
    options       the fields of GenerateConfig that it honours beside what its capabilities stand for
    """

    server: str
    api: str
    model: str | None
    model_type: str
    info: ModelInfo
    slots: int
    capabilities: frozenset[str]
    options: frozenset[str]


def ask(connection: Connection, model: str | None = None) -> ServerFacts:
    """Ask the server what it is and which model it has.

    Raises ServerError where it can't be reached or refuses; waits while it loads, as long as
    the connection's first_token_timeout.
    """
    raise NotImplementedError
