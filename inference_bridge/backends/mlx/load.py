# SPDX-License-Identifier: Apache-2.0
"""Loading the model in a directory: a text-generation model or an embedding model."""

from __future__ import annotations

import os
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
    _open_standard_input()
    if found.facts.embeddings or (isinstance(config.extra, Mapping) and "pooling" in config.extra):
        from . import embeddings

        return embeddings.load(found, config, backend=backend)
    return load_model(found, config, backend=backend)


def _open_standard_input() -> None:
    """Open the null device as standard input if that is closed, as it is in some services.

    Otherwise the next file that this process opens has the descriptor 0, and MLX can't read a file with that descriptor
    (`ParallelFileReader.is_open` in mlx/io/load.h).
    """
    try:
        os.fstat(0)
    except OSError:
        opened = os.open(os.devnull, os.O_RDONLY)
        if opened != 0:  # another thread has opened a file
            os.close(opened)
