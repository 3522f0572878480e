# SPDX-License-Identifier: Apache-2.0
"""Where other programs keep their models: Hugging Face, llama.cpp, LM Studio, Ollama, and installed packages."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from typing import NamedTuple

from . import installed

MAX_MANIFEST_BYTES = 1 << 20
MAX_MANIFESTS = 10_000

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def directories() -> list[str]:
    """The stores' directories that exist."""
    stores = [_hugging_face(), _llama_cpp(), *_lm_studio(), *_ollama()]
    return [*filter(os.path.isdir, stores), *installed.model_directories()]


def _hugging_face() -> str:
    """https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables"""
    home = _environment("HF_HOME") or os.path.join(_user_cache(), "huggingface")
    return _environment("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")


def _llama_cpp() -> str:
    """`fs_get_cache_directory` in llama.cpp's common/common.cpp."""
    if given := _environment("LLAMA_CACHE"):
        return given
    if sys.platform == "darwin":
        return os.path.expanduser("~/Library/Caches/llama.cpp")
    if sys.platform == "win32":
        return os.path.join(os.environ.get("LOCALAPPDATA", ""), "llama.cpp")
    return os.path.join(_user_cache(), "llama.cpp")


def _lm_studio() -> list[str]:
    return [os.path.expanduser(path) for path in ("~/.lmstudio/models", "~/.cache/lm-studio/models")]


def _ollama() -> list[str]:
    """https://docs.ollama.com/faq: the user's own store, and that of the Linux service."""
    if given := _environment("OLLAMA_MODELS"):
        return [given]
    return [os.path.expanduser("~/.ollama/models"), "/usr/share/ollama/.ollama/models"]


def _environment(*names: str) -> str:
    value = next(filter(None, map(os.environ.get, names)), "")
    return value and os.path.abspath(os.path.expanduser(os.path.expandvars(value)))


def _user_cache() -> str:
    return _environment("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")


# ---------------------------------------------------------------- the Hugging Face cache


def hub_parts(directory: str) -> tuple[tuple[str, ...], int]:
    """(the components of `directory`, how many of the last of them name a model in it).

    A snapshot in a Hugging Face cache, `models--ORG--NAME/snapshots/REVISION`, becomes
    ORG and NAME, followed by @ and the revision if that is not the main one.
    """
    parts = tuple(directory.split(os.sep))
    for at, part in enumerate(parts[:-2]):
        if part.startswith("models--") and parts[at + 1] == "snapshots":
            *owner, name = part.removeprefix("models--").split("--")
            revision = parts[at + 2]
            if not _is_main(os.sep.join(parts[: at + 1]), revision):
                name += f"@{revision[:8]}"
            inside = (*owner, name, *parts[at + 3 :])
            return (*parts[:at], *inside), len(inside)
    return parts, 1


def _is_main(repository: str, revision: str) -> bool:
    try:
        with open(os.path.join(repository, "refs", "main"), encoding="ascii") as file:
            return file.read(64).strip() == revision
    except (OSError, ValueError):
        with contextlib.suppress(OSError):
            return len(os.listdir(os.path.join(repository, "snapshots"))) == 1
    return False


# ---------------------------------------------------------------- Ollama


class OllamaModel(NamedTuple):
    """A tagged model. `parts` lead to its name: registry, namespace, and MODEL-TAG, or MODEL for the tag "latest"."""

    parts: tuple[str, ...]
    path: str
    projector: str | None = None
    problem: str | None = None


def ollama_models(store: str) -> list[OllamaModel]:
    """The models in an Ollama store: manifests/REGISTRY/NAMESPACE/MODEL/TAG tell which of the blobs they are."""
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
    from .checkpoint import read_json

    try:
        layers = read_json(path, MAX_MANIFEST_BYTES).get("layers")
    except ValueError as error:
        return [OllamaModel(parts, path, problem=str(error))]
    blobs: dict[str, str] = {}
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, dict) and isinstance(layer.get("mediaType"), str):
            digest = layer.get("digest")
            if isinstance(digest, str) and _DIGEST.fullmatch(digest):
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
