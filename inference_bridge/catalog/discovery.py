# SPDX-License-Identifier: Apache-2.0
"""Finding the models on this machine, and one of them by its name.

How files become models is in `search`, which is imported when nothing is remembered: what was found
is, until a directory or a file that it depends on has changed.
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
"""The files of this library by which a search is done."""


def discover(*directories: str | os.PathLike[str]) -> list[DiscoveredModel]:
    """The models under `directories`, or without any: wherever models usually lie on this machine.

    Those are the configured directories, INFERENCE_BRIDGE_MODELS, the stores of Hugging Face,
    llama.cpp, LM Studio and Ollama, installed packages that ship a GGUF file, and what
    plugins name. A directory that can't be read is left out with a warning in the log.

    What is damaged is listed with its `problem`; its model_type is "" where that can't be
    relied on. Each model is listed once under each name that its file, its directory or a link to it has: a
    repository's in the Hugging Face cache (ORG/NAME, for GGUF files the file's own), or Ollama's MODEL-TAG (MODEL, for
    the tag "latest"). Names that collide get as much of their paths in front as tells them apart. Sorted by name.
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
    """The models, with what a trial load of their files found wrong with them."""
    known = verdicts.problems()
    if not known:
        return models
    return [model._replace(problem=model.problem or known.get(model.path)) for model in models]


def default_directories(extra: Iterable[str] = ()) -> list[str]:
    """Where `discover()` looks: the configured directories, `extra` ones, and the stores that exist."""
    return list(dict.fromkeys([*config.load().directories, *extra, *stores.directories()]))


def lookup(name: str, models: Iterable[DiscoveredModel]) -> DiscoveredModel | None:
    """The one model that `name` means, or None.

    The exact name comes first; then the name in other case, with ".gguf", or as Ollama
    writes it (MODEL:TAG); then the end of a path. A name that means several means none.
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
    """Up to five names of models that `name` may have meant, the likeliest first."""
    import difflib

    names = {model.name.casefold(): model.name for model in models}
    wanted = name.casefold().removesuffix(".gguf")
    same_end = sorted(known for known in names if known.rpartition("/")[2] == wanted.rpartition("/")[2])
    close = difflib.get_close_matches(wanted, names, 5, 0.5)
    return [names[known] for known in dict.fromkeys([*same_end, *close])][:5]


def _plain(path: str) -> str:
    """A path as names are written: no extension, no part number, a repository's name; in lower case."""
    directory, file = os.path.split(path)
    return "/".join((*stores.hub_parts(directory)[0], stem(file))).casefold()
