# SPDX-License-Identifier: Apache-2.0
"""The properties of a server and of its model."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...types import ModelInfo
from .bridge_facts import BridgeFacts
from .servers import SERVERS

DEFAULT_SLOTS = 4
"""Number of operations that run at once at first, on a server that does not say how many it can run."""


@dataclass(frozen=True)
class FillTokens:
    """The ids of a model's tokens for fill-in-the-middle prompts.

    Attributes:
        begins: The tokens that begin every prompt. None: the server adds them.
        prefix: The token before the prefix.
        suffix: The token before the suffix.
        middle: The token before the text to generate.
    """

    begins: tuple[int, ...] | None
    prefix: int
    suffix: int
    middle: int


@dataclass(frozen=True)
class ServerFacts:
    """The properties of a server and its model.

    Attributes:
        server: The kind of server: a name of servers.SERVERS; "" for any other with the OpenAI-compatible API.
        native: Whether it also has llama.cpp's own endpoints.
        api: The path of the OpenAI-compatible API below the server's address: "/v1".
        model: The model name that is sent with every request. None: no name is sent.
        model_type: The architecture id; "unknown" if the server does not state it.
        info: The properties of the model, as far as the server states them.
        slots: Number of operations that run at once.
        slots_known: Whether the server states it. Otherwise `slots` is a start value, and is adapted.
        capabilities: The capabilities of the model.
        options: The fields of GenerateConfig that it supports, in addition to those that its capabilities imply.
        renders: Whether chats use /apply-template and /completion (see protocol.rendered_chat).
        takes_media: Whether that /completion accepts images and sound.
        knows_tools: Whether the model's chat template renders tools.
        assumed: The capabilities about which the server gives no information.
        reasons_if_asked: Whether reasoning can be switched on and off.
        reasons_by_degree: Whether reasoning has degrees ("low", "medium", "high").
        fill: The model's tokens for fill-in-the-middle prompts, if it has them and the server is a llama-server.
        bridge: The additional properties that this package's own server sends. None: another server.
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
