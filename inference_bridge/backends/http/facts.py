# SPDX-License-Identifier: Apache-2.0
"""What is known of a server and of the model on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...types import ModelInfo
from .bridge_facts import BridgeFacts
from .servers import SERVERS

DEFAULT_SLOTS = 4
"""Operations in flight at first on another server that does not say how many it runs."""


@dataclass(frozen=True)
class FillTokens:
    """A model's tokens for fill in the middle: their ids.

    begins    the tokens that begin every prompt; None: the server adds them
    """

    begins: tuple[int, ...] | None
    prefix: int
    suffix: int
    middle: int


@dataclass(frozen=True)
class ServerFacts:
    """A server, asked.

    server        what it is: a name of servers.SERVERS, "" for any other that has the OpenAI-compatible API
    native        whether llama.cpp's own endpoints are there beside that API
    api           the path of that API below the server's address: "/v1"
    model         the name sent with every request; None: none is sent
    model_type    architecture id, "unknown" if the server does not tell it
    slots         how many operations it runs at once
    slots_known   whether the server says so; otherwise `slots` is where the model starts to adapt
    options       the fields of GenerateConfig that it honours beside what its capabilities stand for
    renders       whether chats go by /apply-template and /completion (see http_chat)
    takes_media   whether that /completion takes images and sound
    knows_tools   whether the model's chat template does
    assumed       the capabilities that the server has no way to tell
    reasons_if_asked, reasons_by_degree  whether reasoning can be switched, and whether there are degrees of it
    fill          the model's tokens for fill in the middle, on a llama-server whose model has them
    bridge        what this package's own server says beyond that; None: it is another one
    """

    server: str = ""
    native: bool = False
    api: str = "/v1"
    model: str | None = None
    model_type: str = "unknown"
    info: ModelInfo = field(default_factory=ModelInfo)
    slots: int = DEFAULT_SLOTS
    slots_known: bool = False
    capabilities: frozenset[str] = SERVERS[""].capabilities | {"stats"}
    options: frozenset[str] = SERVERS[""].options
    renders: bool = False
    takes_media: bool = False
    knows_tools: bool = True
    reasons_if_asked: bool = True
    reasons_by_degree: bool = True
    assumed: frozenset[str] = frozenset()
    fill: FillTokens | None = None
    bridge: BridgeFacts | None = None
