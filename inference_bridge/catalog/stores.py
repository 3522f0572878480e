# SPDX-License-Identifier: Apache-2.0
"""The directories in which other programs store models: Hugging Face, llama.cpp, LM Studio, Ollama, packages."""

from __future__ import annotations

import contextlib
import os
import sys

from .._cache import installed


def directories() -> list[str]:
    """Return the directories of stores that exist."""
    stores = [_hugging_face(), _llama_cpp(), *_lm_studio(), *_ollama()]
    # Without a home directory, expanduser leaves "~" unchanged, and the path would be relative.
    there = [store for store in stores if os.path.isabs(store) and os.path.isdir(store)]
    return [*there, *installed.model_directories()]


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
    """Return the components of `directory`, and how many of the last components are the name of a model in it.

    For a snapshot in a Hugging Face cache, `models--ORG--NAME/snapshots/REVISION`, the last components are
    ORG and NAME; "@" and the revision are appended if it is not the main one.
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
