# SPDX-License-Identifier: Apache-2.0
"""What the directory at a path becomes: a model that generates text, or one that makes embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .model import checked, load_model

if TYPE_CHECKING:
    from ...model import TextModel
    from ...options import LoadConfig


def load(path: str, config: LoadConfig, *, backend: str) -> TextModel:
    """Load the model in the directory at `path`.

    Raises:
        ModelNotFoundError, ModelLoadError, UnsupportedError: As `Backend.load_model`.
    """
    found = checked(path)
    if found.facts.embeddings or (isinstance(config.extra, Mapping) and "pooling" in config.extra):
        from . import embeddings

        return embeddings.load(found, config, backend=backend)
    return load_model(found, config, backend=backend)
