# SPDX-License-Identifier: Apache-2.0
"""Fill in the middle on a server gives what the same model gives in process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inference_bridge import TextModel, load_model
from inference_bridge.engine.infill import FILL_NAMES

from .models.tiny_gguf import write_llama

NAMES = FILL_NAMES[0]
PREFIX, SUFFIX = "def f(x):\n    return ", f"\n\nf(3) # {NAMES[2]}"
GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}


def write_fill(directory: Path) -> Path:
    """A tiny model that has tokens for fill in the middle."""
    return write_llama(directory / "tiny.gguf", special=NAMES)


@contextmanager
def in_process(path: Path) -> Iterator[TextModel]:
    """The model on the engine whose results the server's must equal."""
    with load_model(path, backend="llama_cpp", context_length=512, deterministic=True) as model:
        yield model


async def check_equal(model: TextModel, local: TextModel) -> None:
    """Names of special tokens in the texts are text there too, and long texts are not cut."""
    assert "infill" in model.capabilities
    for prefix, suffix in ((PREFIX, SUFFIX), (PREFIX, ""), ("", SUFFIX), ("", ""), (PREFIX * 12, SUFFIX)):
        here, there = local.infill(prefix, suffix, **GREEDY).result(), model.infill(prefix, suffix, **GREEDY).result()
        assert there.text == here.text
        assert there.metrics.prompt_tokens == here.metrics.prompt_tokens
    assert await model.ainfill(PREFIX, SUFFIX, **GREEDY).text() == local.infill(PREFIX, SUFFIX, **GREEDY).text()
