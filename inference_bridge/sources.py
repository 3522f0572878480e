# SPDX-License-Identifier: Apache-2.0
"""What a source stands for: "backend:model", a URL, a configured name, a path, or a discovered name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ._suggest import did_you_mean, suggest
from .errors import ModelLoadError, ModelNotFoundError
from .options import GenerateConfig, LoadConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .catalog.found import DiscoveredModel


@dataclass(frozen=True, slots=True)
class Source:
    """A source taken apart: `model` is for `backend`, or the default one, to load.

    `load` and `options` are what the configuration file says of the name; `configured` is that name.
    """

    model: str
    backend: str | None = None
    load: LoadConfig = field(default_factory=LoadConfig)
    options: GenerateConfig = field(default_factory=GenerateConfig)
    configured: str | None = None


def parse(
    source: str | os.PathLike[str], backend: str | None, backends: Container[str], api_key: str | None = None
) -> Source:
    """Take `source` apart. `backend` and `api_key` are what the caller gives beside it, `backends` those registered.

    Raises ConfigError, and ValueError where two backends are named.
    """
    if isinstance(source, os.PathLike):
        return Source(os.path.abspath(os.path.expanduser(os.fsdecode(source))), backend)
    if not isinstance(source, str):
        raise TypeError(f"source must be a str or a path, not {type(source).__name__}")
    prefix, model = _split(source, backends)
    if not model:
        raise ValueError(f"source {source!r} names no model")
    if prefix and backend and prefix != backend:
        raise ValueError(f"source {source!r} names backend {prefix!r}, and backend={backend!r} another")
    backend = backend or prefix
    if _is_url(model) or _is_path(model):
        return Source(model, backend)

    from .catalog import config

    entry = config.load().models.get(model)
    if entry is None:
        return Source(model, backend)
    prefix, model = _split(entry.source, backends)
    return Source(model, backend or entry.backend or prefix, entry.load_config(api_key), entry.options, entry.name)


def locate(source: Source, takes: Callable[[str], bool] | None) -> str:
    """The path or URL of `source`, or what its backend understands by it.

    `takes` tells whether the backend that was named can load something. Raises
    ModelNotFoundError, and ModelLoadError for a discovered model that has a problem.
    """
    model = source.model
    if _is_url(model):
        return model
    path = os.path.expanduser(model)
    if os.path.exists(path):
        return path
    if _is_path(model):  # no name to look up
        if takes is not None and takes(model):
            return model
        raise ModelNotFoundError(f"there is no model at {path}{_of(source)}{_beside(path)}")

    from .catalog import discovery

    models = discovery.discover()
    found = discovery.lookup(model, models)
    if takes is not None and not (found and takes(found.path)) and takes(model):
        return model
    if found is None:
        raise _not_found(source, models)
    if found.problem is not None:
        raise ModelLoadError(f"{found.path} can't be loaded: {found.problem}")
    return found.path


def name_of(source: Source, location: str, config: LoadConfig) -> str:
    """What to call the model from `location` where its path is nobody's business; "" where only a server knows."""
    if source.configured or config.model:
        return source.configured or config.model or ""
    if _is_url(location):
        return ""
    if os.path.exists(location):
        return os.path.basename(os.path.abspath(location)).removesuffix(".gguf")
    return location


def _split(source: str, backends: Container[str]) -> tuple[str | None, str]:
    """The backend before the first colon, if it is one, and the rest. A URL has none, though "http" is a backend."""
    prefix, colon, rest = source.partition(":")
    if colon and prefix in backends and not _is_url(source):
        return prefix, rest
    return None, source


def _is_url(source: str) -> bool:
    return re.match(r"https?://", source, re.IGNORECASE) is not None


def _is_path(source: str) -> bool:
    """Whether it can only be a path."""
    return os.path.isabs(source) or source.startswith(("~", "./", "../")) or source in (".", "..")


def _of(source: Source) -> str:
    return f" (the source of {source.configured!r} in the configuration file)" if source.configured else ""


def _beside(path: str) -> str:
    """A hint at the files beside a path that is not there."""
    directory, file = os.path.split(path)
    try:
        return did_you_mean(file, os.listdir(directory or "."))
    except OSError as error:
        return f": its directory can't be read ({error.strerror or error})"


def _not_found(source: Source, models: Sequence[DiscoveredModel]) -> ModelNotFoundError:
    from . import registry
    from .catalog import config, discovery

    name, settings = source.model, config.load()
    prefix, colon, rest = name.partition(":")
    advice = ""
    if colon and not source.backend:
        advice = did_you_mean(f"{prefix}:", [f"{backend}:" for backend in registry.names()])
    if not advice:
        near = [*discovery.near(name, models), *(discovery.near(rest, models) if colon else ())]
        advice = suggest(near[:3]) or did_you_mean(name, settings.models)
    places = ", ".join(discovery.default_directories(registry.model_directories()))
    return ModelNotFoundError(
        f"no model is called {name!r}{_of(source)}{advice}\n"
        f"  It is no path, no name in {settings.path}, and none of the {len(models)} models found"
        f"{f' in {places}' if places else ': there is no directory to look in'}. "
        "INFERENCE_BRIDGE_MODELS, or directories in that file, name more places to look."
    )
