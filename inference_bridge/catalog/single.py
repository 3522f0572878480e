# SPDX-License-Identifier: Apache-2.0
"""Describes the model at one path, as a search would, without searching directories."""

from __future__ import annotations

import os

from .._cache.scan_cache import Memory, code
from .discovery import READERS
from .found import DiscoveredModel, as_part, stem
from .headers import gguf

_OTHERS: dict[gguf.Kind, str] = {
    "projector": "a projector: give it as mmproj of a model",
    "adapter": "a LoRA adapter: give it as adapters of a model",
    "vocabulary": "a vocabulary without a model",
}


def look_at(path: str) -> DiscoveredModel:
    """Read the headers of the files at a path. The result is cached until one of the files changes.

    Args:
        path: A GGUF file, any part of a split one, or the directory of an MLX model.

    Returns:
        The model, named after the file or directory. Its `problem` says what is wrong with it, for example that there
        is no model at the path.
    """
    path = os.path.abspath(path)
    memory = Memory("single", [path], [*DiscoveredModel._fields, *code(*READERS)])
    remembered = memory.result()
    if remembered is not None:
        return DiscoveredModel._make(remembered)
    memory.note(path)
    model = _look_at(path, memory)
    memory.save(model)
    return model


def _look_at(path: str, memory: Memory) -> DiscoveredModel:
    from .search import model_of

    directory, name = os.path.split(path)
    try:
        if not os.path.lexists(path):
            return DiscoveredModel(path, name, "gguf", problem="there is no such file")
        if os.path.isdir(path):
            found = model_of(path, {}, 0, memory)
            return found._replace(name=name) if found else _no_model_in(path)
        part = as_part(name)
        if not name.lower().endswith(".gguf") and not gguf.is_gguf(path):
            problem = "it is not a model: neither a GGUF file nor the directory of an MLX model"
            return DiscoveredModel(path, name, "gguf", problem=problem)
        files = {1: name}
        if part:
            parts = [
                one for one in map(as_part, os.listdir(directory)) if one and (one[1], one[3]) == (part[1], part[3])
            ]
            files = {int(one[2]): one[0] for one in parts}
        found = model_of(directory, files, int(part[3]) if part else 1, memory)
        if found is not None:
            return found._replace(name=stem(name))
        holds = _OTHERS.get(gguf.read_metadata(path).kind, "something else than a text model")
        return DiscoveredModel(path, name, "gguf", problem=f"it holds {holds}")
    except OSError as error:
        return DiscoveredModel(path, name, "gguf", problem=f"it can't be read: {error.strerror or error}")


def _no_model_in(path: str) -> DiscoveredModel:
    inside = sorted(entry for entry in os.listdir(path) if entry.lower().endswith(".gguf"))
    hint = f": name a file in it, such as {os.path.join(path, inside[0])}" if inside else ""
    return DiscoveredModel(path, os.path.basename(path), "mlx", problem=f"the directory holds no MLX model{hint}")
