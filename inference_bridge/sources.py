# SPDX-License-Identifier: Apache-2.0
"""Resolve a source: "backend:model", a URL, a configured name, a path, or the name of a discovered model."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ._suggest import backends_alike, did_you_mean, suggest
from .availability import bridge_command
from .errors import ModelLoadError, ModelNotFoundError
from .options import GenerateConfig, LoadConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .catalog.found import DiscoveredModel


@dataclass(frozen=True, slots=True)
class Source:
    """The parts of a source.

    Attributes:
        model: What the backend loads: a path, a URL or a name.
        backend: The name of the backend; None: the default one.
        load: The load options that the configuration file sets for the name.
        options: The generation options that the configuration file sets for the name.
        configured: The name in the configuration file, if the source is such a name.
    """

    model: str
    backend: str | None = None
    load: LoadConfig = field(default_factory=LoadConfig)
    options: GenerateConfig = field(default_factory=GenerateConfig)
    configured: str | None = None


def parse(
    source: str | os.PathLike[str], backend: str | None, backends: Container[str], api_key: str | None = None
) -> Source:
    """Split a source into backend and model, and look its name up in the configuration file.

    Args:
        source: What the caller passed.
        backend: The backend that the caller named separately.
        backends: The names of the registered backends.
        api_key: The key that the caller passed. It takes precedence over the key in the configuration file.

    Returns:
        The parts of the source.

    Raises:
        ConfigError: The entry of that name in the configuration file is wrong.
        TypeError: The source is neither a str nor a path.
        ValueError: The source names no model, or the source and `backend` name different backends.
    """
    if isinstance(source, os.PathLike):
        return Source(os.path.abspath(os.path.expanduser(os.fsdecode(source))), backend)
    if not isinstance(source, str):
        raise TypeError(f"source must be a str or a path, not {type(source).__name__}")
    prefix, model = _split(source, backends)
    if not model:
        raise ValueError(f"the source {source!r} does not name a model")
    if prefix and backend and prefix != backend:
        raise ValueError(f"the source {source!r} names the backend {prefix!r}, but backend={backend!r} was passed too")
    backend = backend or prefix
    if _is_url(model) or _is_path(model):
        return Source(model, backend)

    from .catalog import config

    entry = config.load().model(model)
    if entry is None:
        return Source(model, backend)
    prefix, model = _split(entry.source, backends)
    return Source(model, backend or entry.backend or prefix, entry.load_config(api_key), entry.options, entry.name)


def locate(source: Source, takes: Callable[[str], bool] | None) -> str:
    """Return the path or URL of a source, or the name that only its backend understands.

    Args:
        source: A source from `parse`.
        takes: Returns whether the named backend can load a path or name. None: no backend was named.

    Raises:
        ModelNotFoundError: The model does not exist.
        ModelLoadError: Discovery found a problem with the model.
    """
    model = source.model
    if _is_url(model):
        return model
    path = os.path.expanduser(model)
    if os.path.exists(path):
        return path
    if _is_path(model):  # not a name, so it is not searched for
        if takes is not None and takes(model):
            return model
        raise ModelNotFoundError(f"no model at {path}{_of(source)}{_beside(path)}")
    if os.path.islink(path):
        raise ModelNotFoundError(f"no model at {path}{_of(source)}{_beside(path)}")

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
    """Return a name for the model that does not reveal its path; "" if only the server knows it."""
    if source.configured or config.model:
        return source.configured or config.model or ""
    if _is_url(location):
        return ""
    if os.path.exists(location):
        return os.path.basename(os.path.abspath(location)).removesuffix(".gguf")
    return location


def _split(source: str, backends: Container[str]) -> tuple[str | None, str]:
    """Split off the backend before the first colon. The "http" of a URL is not a backend."""
    prefix, colon, rest = source.partition(":")
    if colon and prefix in backends and not _is_url(source):
        return prefix, rest
    return None, source


def _is_url(source: str) -> bool:
    return re.match(r"https?://", source, re.IGNORECASE) is not None


def _is_path(source: str) -> bool:
    """Return whether `source` can only be a path."""
    return os.path.isabs(source) or source.startswith(("~", "./", "../")) or source in (".", "..")


def _of(source: Source) -> str:
    return f" (which the configuration file names as the source of {source.configured!r})" if source.configured else ""


def _beside(path: str) -> str:
    """Return the target of the broken link at a path, or a hint at files with similar names in its directory."""
    directory, file = os.path.split(path)
    if os.path.islink(path):
        return f": it is a link to {os.readlink(path)}, which does not exist"
    try:
        return did_you_mean(file, os.listdir(directory or "."))
    except OSError as error:
        return f": its directory cannot be read ({error.strerror or error})"


def _not_found(source: Source, models: Sequence[DiscoveredModel]) -> ModelNotFoundError:
    from . import registry
    from .catalog import config, discovery

    name, settings = source.model, config.load()
    prefix, colon, rest = name.partition(":")
    advice = ""
    if colon and not source.backend:
        advice = suggest(f"{backend}:" for backend in backends_alike(prefix, registry.names()))
    if not advice and re.fullmatch(r"(localhost|\[[0-9a-fA-F:]+\]|[\w-]+(\.[\w-]+)*):\d{1,5}(/.*)?", name):
        advice = f": for a server, write its URL: http://{name}"
    if not advice:
        near = [*discovery.near(name, models), *(discovery.near(rest, models) if colon else ())]
        advice = suggest(near[:3]) or did_you_mean(name, settings.models)
    pull = ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name) and not name.lower().endswith(".gguf"):
        pull = f"  To download it from the Hugging Face hub, run: {bridge_command(f'pull {name}')}\n"
    places = ", ".join(discovery.default_directories(registry.model_directories()))
    if models:
        count = "One model was" if len(models) == 1 else f"{len(models)} models were"
        found = f"{count} found in {places}; `{bridge_command('models')}` lists all models."
    else:
        lists = bridge_command("pull")
        found = f"No models were found on this machine. `{lists}` lists recommended ones to download."
    shown = re.sub(r"(^|//)[^@/\s]*:[^@/\s]*@", r"\1***@", name)  # hide the password of a misspelled URL
    return ModelNotFoundError(
        f"model {shown!r} not found{_of(source)}{advice}\n{pull}  {found}\n"
        f"  It is not a path, and {settings.path} does not configure it. "
        "Set INFERENCE_BRIDGE_MODELS, or `directories` in that file, to search in other directories."
    )
