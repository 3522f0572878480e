# SPDX-License-Identifier: Apache-2.0
"""Finds the models on this machine, and one of them by its name.

`search` reads files and directories. The results of a search are cached in the user's cache directory until a
directory or file that they depend on changes. `search` is imported only if nothing valid is cached.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from .._cache.scan_cache import Memory, code
from . import config, stores, verdicts
from .found import DiscoveredModel, stem

READERS = tuple(
    os.path.join("catalog", f"{name}.py")
    for name in ("checkpoint", "discovery", "found", "gguf", "gguf_values", "ollama", "search", "single", "stores")
)
"""The source files of this library that determine the result of a search. If one changes, the cache is invalid."""


def discover(*directories: str | os.PathLike[str]) -> list[DiscoveredModel]:
    """Find the models in `directories` and their subdirectories.

    Without `directories`, the usual places are searched: the configured directories, INFERENCE_BRIDGE_MODELS, the
    stores of Hugging Face, llama.cpp, LM Studio and Ollama, installed packages that contain a GGUF file, and the
    directories that plugins name. A directory that can't be read is skipped, and a warning is logged.

    A model is listed once for each name that its file, its directory or a link to it has. In the Hugging Face cache
    the name is that of the repository (ORG/NAME), for GGUF files that of the file; in Ollama's store it is MODEL-TAG,
    or MODEL for the tag "latest". If two models have the same name, the shortest distinguishing part of the path is
    prepended.

    Args:
        directories: The directories to search.

    Returns:
        The models, sorted by name. A damaged model has a `problem`; its model_type is "" if the files do not state it
        reliably.
    """
    if directories:
        roots = [os.fspath(directory) for directory in directories]
    else:
        from ..registry import model_directories

        roots = default_directories(model_directories())
    roots = [os.path.abspath(os.path.expanduser(root)) for root in roots]
    memory = Memory("models", roots, [*DiscoveredModel._fields, *code(*READERS)])
    remembered = memory.result()
    if remembered is not None:
        return _with_verdicts(list(map(DiscoveredModel._make, remembered)))
    from .search import search

    found = search(roots, memory)
    memory.save(found)
    return _with_verdicts(found)


def _with_verdicts(models: list[DiscoveredModel]) -> list[DiscoveredModel]:
    """Return the models with the problems that trial loads of their files have found."""
    known = verdicts.problems()
    if not known:
        return models
    return [model._replace(problem=model.problem or known.get(model.path)) for model in models]


def default_directories(extra: Iterable[str] = ()) -> list[str]:
    """Return the directories that `discover()` searches: configured ones, `extra`, and the stores that exist."""
    return list(dict.fromkeys([*config.load().directories, *extra, *stores.directories()]))


def lookup(name: str, models: Iterable[DiscoveredModel]) -> DiscoveredModel | None:
    """Return the one model that `name` refers to. None: no model matches, or several do.

    The exact name is tried first; then the name in another case, with ".gguf", or as Ollama
    writes it (MODEL:TAG); then the end of a path.

    Args:
        name: The name that a user gave.
        models: The models that were found.
    """
    models = list(models)
    wanted = name.casefold().removesuffix(".gguf")
    tagged = wanted.replace(":", "-").removesuffix("-latest")
    for matches in (
        [model for model in models if model.name == name],
        [model for model in models if model.name.casefold() in (wanted, tagged)],
        [model for model in models if _plain(model.path).endswith(f"/{wanted}")],
    ):
        if matches:
            return matches[0] if len(matches) == 1 else None
    return None


def near(name: str, models: Iterable[DiscoveredModel]) -> list[str]:
    """Return up to five names of models that resemble `name`, the most similar first."""
    import difflib

    names = {model.name.casefold(): model.name for model in models}
    wanted = name.casefold().removesuffix(".gguf")
    same_end = sorted(known for known in names if known.rpartition("/")[2] == wanted.rpartition("/")[2])
    close = difflib.get_close_matches(wanted, names, 5, 0.5)
    return [names[known] for known in dict.fromkeys([*same_end, *close])][:5]


def _plain(path: str) -> str:
    """Return a path in lower case without extension and part number, and with the name of a repository if it is one."""
    directory, file = os.path.split(path)
    return "/".join((*stores.hub_parts(directory)[0], stem(file))).casefold()
