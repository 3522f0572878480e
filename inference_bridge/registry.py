# SPDX-License-Identifier: Apache-2.0
"""The registered backends, and the choice of a backend for a source.

Plugins are loaded at the first use. A backend that a program registers therefore comes after them
and replaces a plugin's backend of the same name.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from ._suggest import backends_alike, suggest
from .availability import Availability
from .backend import Backend
from .errors import (
    BackendNotFoundError,
    BackendUnavailableError,
    NoBackendAvailableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pluggy import PluginManager

_PREFERRED = ("metal", "rocm", "llama_cpp")

_lock = threading.RLock()  # reentrant: a plugin may use the registry while it is being loaded
_backends: dict[str, Backend] = {}
_plugins: PluginManager | None = None


def register(backend: Backend) -> None:
    """Add a backend under its `name`. A backend registered under the same name is replaced, with a RuntimeWarning.

    Args:
        backend: An instance of a subclass of Backend.

    Raises:
        TypeError: `backend` is not a Backend.
        ValueError: Its name is not a Python identifier.
    """
    if not isinstance(backend, Backend):
        also = ": pass an instance of it" if isinstance(backend, type) else ""
        raise TypeError(f"register() takes a Backend, not {backend!r}{also}")
    name = getattr(backend, "name", None)
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"the name of a backend must be a Python identifier, but {_described(backend)} has {name!r}")
    _load_plugins()
    with _lock:
        old = _backends.get(name)
        if old is not None and old is not backend:
            import warnings

            message = f"backend {name!r}: {_described(backend)} replaces {_described(old)}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        _backends[name] = backend


def unregister(name: str) -> None:
    """Remove a backend. Its loaded models stay usable.

    Args:
        name: The backend's name.

    Raises:
        BackendNotFoundError: No backend has this name.
    """
    _load_plugins()
    with _lock:
        get(name)
        del _backends[name]


def get(name: str) -> Backend:
    """Return the backend with a name. It may be unavailable on this machine: see `Backend.availability`.

    Args:
        name: The backend's name, such as "llama_cpp".

    Returns:
        The backend.

    Raises:
        BackendNotFoundError: No backend has this name. The message suggests similar names.
    """
    _load_plugins()
    with _lock:
        backend = _backends.get(name)
    if backend is None:
        known = names()
        registered = f"registered: {', '.join(known)}" if known else "none is registered"
        raise BackendNotFoundError(f"unknown backend {name!r}{suggest(backends_alike(name, known))} ({registered})")
    return backend


def names() -> list[str]:
    """Return the names of the registered backends, in order of registration."""
    _load_plugins()
    with _lock:
        return list(_backends)


def default(source: str | None = None) -> Backend:
    """Return the backend that is used if the caller does not name one.

    If the environment variable INFERENCE_BRIDGE_BACKEND is set, it names the backend. Otherwise the backends are tried
    in this order: metal, rocm, llama_cpp, then the others in order of registration. The first one that is available
    and can load `source` is returned.

    Args:
        source: A path, URL or name. None: return the first available backend.

    Returns:
        The backend.

    Raises:
        NoBackendAvailableError: No backend is available and can load `source`. The message has each backend's reason.
        BackendNotFoundError: INFERENCE_BRIDGE_BACKEND names an unknown backend.
        BackendUnavailableError: INFERENCE_BRIDGE_BACKEND names a backend that cannot run on this machine.
    """
    _load_plugins()
    override = from_environment()
    if override is not None:
        return override

    with _lock:
        backends = in_order(_backends.values())
    reasons: dict[str, str] = {}
    some_available = False
    for backend in backends:
        if backend.only_when_named:
            reasons[backend.name] = f"used only when it is named, as in {backend.name}:model"
            continue
        told = availability(backend)
        loads = source is None or can_load(backend, source)
        if told and loads is True:
            return backend
        some_available = some_available or told.ok
        why = [] if told else [_sentence(told)]
        if loads is not True:
            why.append(loads if isinstance(loads, str) else "it cannot load this kind of source")
        reasons[backend.name] = "; ".join(why)

    if not backends:
        raise NoBackendAvailableError("no backend is registered: register() one, or install a plugin", reasons)
    what = "" if source is None else f" to load {source!r}"
    if some_available:
        raise NoBackendAvailableError(f"none of the available backends can load {source!r}:", reasons)
    raise NoBackendAvailableError(f"no backend is available{what}:", reasons)


def in_order(backends: Iterable[Backend]) -> list[Backend]:
    """Sort backends in the order in which `default` tries them: the preferred ones first."""
    ranks = {name: rank for rank, name in enumerate(_PREFERRED)}
    return sorted(backends, key=lambda backend: ranks.get(backend.name, len(ranks)))


def model_directories() -> list[str]:
    """Return the directories in which plugins keep models."""
    from . import plugins

    return plugins.model_directories(_load_plugins())


def _load_plugins() -> PluginManager:
    global _plugins  # noqa: PLW0603
    with _lock:
        if _plugins is None:
            from . import _log, plugins

            _log.configure()
            _plugins = plugins.new_manager()
            try:
                plugins.load(_plugins, register)
            except BaseException:  # for example Ctrl-C: the next use starts again
                _plugins = None
                _backends.clear()
                raise
        return _plugins


def from_environment() -> Backend | None:
    """Return the backend that INFERENCE_BRIDGE_BACKEND names, or None if the variable is not set.

    Raises BackendNotFoundError or BackendUnavailableError.
    """
    name = os.environ.get("INFERENCE_BRIDGE_BACKEND", "").strip()
    if not name:
        return None
    try:
        backend = get(name)
    except BackendNotFoundError as error:
        raise BackendNotFoundError(f"INFERENCE_BRIDGE_BACKEND: {error}") from None
    require(backend)
    return backend


def require(backend: Backend) -> None:
    """Raise BackendUnavailableError if the backend cannot run on this machine."""
    told = availability(backend)
    if not told:
        raise BackendUnavailableError(backend.name, told)


def availability(backend: Backend) -> Availability:
    """Return the backend's availability. If its `availability` raises, the result says so."""
    try:
        return backend.availability()
    except Exception as error:
        return Availability(False, f"asking whether it is available raised {type(error).__name__}: {error}")


def can_load(backend: Backend, source: str) -> bool | str:
    """Return whether the backend can load `source`. If its `can_load` raises, return the reason as a str."""
    try:
        return bool(backend.can_load(source))
    except Exception as error:
        return f"asking whether it can load this raised {type(error).__name__}: {error}"


def _sentence(availability: Availability) -> str:
    return ". ".join(part for part in (availability.reason or "not available", availability.hint) if part)


def _described(backend: Backend) -> str:
    return f"{type(backend).__module__}.{type(backend).__qualname__}"
