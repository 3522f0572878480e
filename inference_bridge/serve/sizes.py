# SPDX-License-Identifier: Apache-2.0
"""The size of a model's weights."""

from __future__ import annotations

import re
from pathlib import Path

from .. import registry, sources
from ..errors import BridgeError

_SHARD = re.compile(r"-\d{5}-of-(\d{5}\.gguf)$")


def weight_bytes(source: str) -> int:
    """Return the size of a source's weight files, in bytes. It is 0 for a server, whose files are elsewhere.

    It is also 0 for a source that does not exist. Loading such a source raises an error.
    """
    try:
        path = Path(sources.locate(sources.parse(source, None, registry.names()), None))
    except BridgeError:
        return 0
    if path.is_dir():
        return sum(file.stat().st_size for file in path.glob("*.safetensors"))
    if not path.is_file():
        return 0
    shard = _SHARD.search(path.name)
    files = path.parent.glob(f"{path.name[: shard.start()]}-*-of-{shard[1]}") if shard else [path]
    return sum(file.stat().st_size for file in files)
