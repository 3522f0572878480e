# SPDX-License-Identifier: Apache-2.0
"""The models that are loaded in this process, one TextModel for each id, key and load options.

A TextModel stays loaded while an llm model object exists whose last call used it. In addition, the TextModel that was
used last stays loaded, because `llm.get_model()` makes a new object with each call. Any other TextModel is dropped, and
frees its memory in its own worker thread.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeGuard

import click
import llm

from inference_bridge import authoring, registry

from .catalog import Offer
from .command import is_command

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from inference_bridge import TextModel

PREFIX_CACHE_SIZE = 2 << 30
"""Default maximum bytes on disk for the prefix cache of commands."""

_Key = tuple[int, str, str | None, tuple[tuple[str, Any], ...]]
# The process is part of the key: a forked child can neither use the models of its parent nor release its locks.
_models: weakref.WeakValueDictionary[_Key, TextModel] = weakref.WeakValueDictionary()
_held: weakref.WeakKeyDictionary[object, TextModel] = weakref.WeakKeyDictionary()
"""The TextModel that each llm model object has used last."""
_last: dict[int, TextModel] = {}
"""The TextModel that was used last, by process."""
_locks: dict[_Key, threading.Lock] = {}


def load(offer: Offer, key: str | None, user: object, options: Mapping[str, Any] | None = None) -> TextModel:
    """Return the TextModel of an offer. Load it if it is not loaded, or was closed.

    Args:
        offer: The model.
        key: The API key of the model's server.
        user: The llm model object. The TextModel stays loaded while it exists.
        options: Fields of LoadConfig, which take precedence over the configuration file.

    Raises:
        BridgeError: Loading failed; see `load_model`.
    """
    return _load(offer, key, user, options or {}, is_command(), _is_logged())


async def aload(offer: Offer, key: str | None, user: object, options: Mapping[str, Any] | None = None) -> TextModel:
    """Call `load` in a thread, so that it does not block the event loop."""
    return await asyncio.to_thread(_load, offer, key, user, options or {}, is_command(), _is_logged())


def _key(offer: Offer, key: str | None, options: Mapping[str, Any] | None = None) -> _Key:
    return os.getpid(), offer.model_id, key, tuple(sorted((options or {}).items()))


def _keep_alive(offer: Offer, options: Mapping[str, Any]) -> float | None:
    """Return `keep_alive` from the configuration file.

    None: it is not set, the backend does not support it, or an option or the model's own entry takes precedence.
    """
    settings = authoring.load_configuration()
    if settings.keep_alive is None or "keep_alive" in options:
        return None
    entry = settings.models.get(offer.source)
    if entry is not None and entry.load.keep_alive is not None:
        return None
    backend = registry.get(offer.kind.backend)
    return settings.keep_alive if "keep_alive" in (backend.load_options or ()) else None


def _prefix_cache_size(offer: Offer, logged: bool) -> int | None:
    """Return the maximum size of a command's prefix cache on disk in bytes; 0 if llm does not log the prompt.

    None: the backend does not support a prefix cache on disk, the model is an embedding model, or the model's own entry
    in the configuration file sets the size.
    """
    backend = registry.get(offer.kind.backend)
    if offer.kind.embeddings or "prefix_cache_size" not in (backend.load_options or ()):
        return None
    settings = authoring.load_configuration()
    entry = settings.models.get(offer.source)
    if entry is not None and entry.load.prefix_cache_size is not None:
        return None
    if not logged:  # a prompt that llm does not log must not be stored in the cache either
        return 0
    return PREFIX_CACHE_SIZE if settings.prefix_cache_size is None else settings.prefix_cache_size


def _is_logged() -> bool:
    """Return whether llm logs the prompt of this thread's command: see `--no-log`, `--log` and `llm logs off`."""
    context = click.get_current_context(silent=True)
    asked = context.params if context is not None else {}
    directory: Path = llm.user_dir()  # type: ignore[no-untyped-call]
    return not asked.get("no_log") and bool(asked.get("log") or not (directory / "logs-off").exists())


def _is_open(model: TextModel | None) -> TypeGuard[TextModel]:
    return model is not None and not model.closed


def _load(
    offer: Offer, key: str | None, user: object, options: Mapping[str, Any], command: bool, logged: bool
) -> TextModel:
    from inference_bridge import LoadConfig, ModelLoadError, load_model

    if offer.problem is not None:
        raise ModelLoadError(f"{offer.source} can't be loaded: {offer.problem}")
    own = _key(offer, key, options)
    with _locks.setdefault(own, threading.Lock()):
        model = _models.get(own)
        if not _is_open(model):
            config = LoadConfig(api_key=key, parallel_slots=1 if offer.kind.one_slot and command else None)
            if command:
                config = config.with_options({"keep_alive": _keep_alive(offer, options)})
                config = config.with_options({"prefix_cache_size": _prefix_cache_size(offer, logged)})
            config = config.with_options(options)
            model = _models[own] = load_model(offer.source, backend=offer.kind.backend, config=config)
    _last[os.getpid()] = _held[user] = model
    return model
