# SPDX-License-Identifier: Apache-2.0
"""Lists the models in an Ollama store. Its manifests say which blobs belong to a model, and the model's name."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from .headers.checkpoint import read_json

MAX_MANIFEST_BYTES = 1 << 20
MAX_MANIFESTS = 10_000


class OllamaModel(NamedTuple):
    """A tagged model. `parts`: the registry, the namespace, and MODEL-TAG, or MODEL for the tag "latest"."""

    parts: tuple[str, ...]
    path: str
    projector: str | None = None
    problem: str | None = None


def models_in(store: str) -> list[OllamaModel]:
    """Return the models in an Ollama store. The files manifests/REGISTRY/NAMESPACE/MODEL/TAG name their blobs."""
    found: list[OllamaModel] = []
    root = os.path.join(store, "manifests")
    for directory, below, tags in os.walk(root):
        below.sort()
        for tag in sorted(tags):
            if len(found) == MAX_MANIFESTS:
                return found
            *parents, model = os.path.relpath(directory, root).split(os.sep)
            if not tag.startswith(".") and model != os.curdir:
                parts = (*parents, model if tag == "latest" else f"{model}-{tag}")
                found += _read_manifest(store, os.path.join(directory, tag), parts)
    return found


def _read_manifest(store: str, path: str, parts: tuple[str, ...]) -> list[OllamaModel]:
    try:
        layers = read_json(path, MAX_MANIFEST_BYTES).get("layers")
    except ValueError as error:
        return [OllamaModel(parts, path, problem=str(error))]
    blobs: dict[str, str] = {}
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, dict) and isinstance(layer.get("mediaType"), str):
            digest = layer.get("digest")
            if isinstance(digest, str) and re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
                kind = layer["mediaType"].removeprefix("application/vnd.ollama.image.")
                blobs.setdefault(kind, os.path.join(store, "blobs", digest.replace(":", "-")))
    if "model" not in blobs:  # kept as separate tensors, which only Ollama reads
        return []
    problem = None
    if not os.path.isfile(blobs["model"]):
        problem = f"its weights are missing: {blobs['model']}. Pull it again"
    elif "adapter" in blobs:
        problem = f"it is a model with an adapter: load its file with adapters=[{blobs['adapter']!r}]"
    return [OllamaModel(parts, blobs["model"], blobs.get("projector"), problem)]
