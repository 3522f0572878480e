# SPDX-License-Identifier: Apache-2.0
"""Reads the description of a model that this package's own server sends."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ...errors import ServerError
from ...options import GenerateConfig
from ...types import ModelInfo
from . import bridge_format


@dataclass(frozen=True)
class BridgeFacts:
    """The part of a model's description that only this package's own server sends.

    Attributes:
        wrapped: The attribute of the model.
        shows_tokens: Whether the model implements `TokenModel`.
        verifies: Whether the model checks more at a call than `TextModel` does.
        defaults: The attribute of the model.
        recommended: The attribute of the model.
    """

    wrapped: bool
    shows_tokens: bool
    verifies: bool
    defaults: GenerateConfig
    recommended: GenerateConfig


@dataclass(frozen=True)
class ModelDescription:
    """The parsed answer of /bridge/model."""

    model_type: str
    info: ModelInfo
    capabilities: frozenset[str]
    options: frozenset[str]
    parallel: int
    bridge: BridgeFacts


def model_description(answer: Any) -> ModelDescription:
    """Read the answer of /bridge/model. Raises ServerError if it has another form."""
    try:
        known = {field.name for field in fields(ModelInfo)}
        return ModelDescription(
            answer["model_type"],
            ModelInfo(**{name: value for name, value in answer["info"].items() if name in known}),
            frozenset(answer["capabilities"]),
            frozenset(answer["options"]),
            int(answer["parallel"]),
            BridgeFacts(
                bool(answer["wrapped"]),
                bool(answer["shows_tokens"]),
                bool(answer["verifies"]),
                bridge_format.config_from_json(answer["defaults"]),
                bridge_format.config_from_json(answer["recommended"]),
            ),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ServerError(f"the server's description of its model can't be read: {error}") from error
