# SPDX-License-Identifier: Apache-2.0
"""Load a model: find it, choose its backend, apply its settings."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Unpack

from . import registry, sources
from .errors import BridgeError, ModelLoadError, UnsupportedError
from .options import LoadConfig

if TYPE_CHECKING:
    from .model import TextModel
    from .options import LoadOptions


def load_model(
    source: str | os.PathLike[str],
    *,
    backend: str | None = None,
    config: LoadConfig | None = None,
    **load_options: Unpack[LoadOptions],
) -> TextModel:
    """Load a model.

    Args:
        source: "backend:model", a path, an http(s) URL, or a name from the configuration file or from
            discovery.
        backend: The name of the backend to use, if `source` does not name one.
        config: The load options.
        load_options: Fields of LoadConfig. They override `config`, and both override what the
            configuration file sets for the name.

    Returns:
        The loaded model. Close it with `close()`, or use it as a context manager.

    Raises:
        BackendNotFoundError: No backend with that name is registered.
        BackendUnavailableError: The named backend cannot run on this machine.
        NoBackendAvailableError: No backend can load the source.
        ModelNotFoundError: The model does not exist.
        ModelLoadError: The model exists but cannot be loaded.
        UnsupportedError: The backend does not support a load option that was set.
        ConfigError: The configuration file is wrong.
        TypeError: An argument has the wrong type, or a load option is unknown.
        ValueError: A load option has a wrong value, or `source` and `backend` name different backends.
    """
    from .model import TextModel

    if backend is not None and not isinstance(backend, str):
        raise TypeError(f"backend must be a backend's name, not {type(backend).__name__}")
    if config is not None and not isinstance(config, LoadConfig):
        raise TypeError(f"config must be a LoadConfig, not {type(config).__name__}")
    asked = (config or LoadConfig()).with_options(load_options)  # first, so that a wrong option needs no search

    parsed = sources.parse(source, backend, registry.names(), asked.api_key)
    named = registry.from_environment() if parsed.backend is None else registry.get(parsed.backend)
    if named is None:
        location = sources.locate(parsed, None)
        chosen = registry.default(location)
    else:
        chosen = named
        registry.require(chosen)
        location = sources.locate(parsed, lambda model: registry.can_load(chosen, model) is True)

    merged = asked.over(parsed.load).effective()
    if chosen.load_options is not None:
        for name in merged.set_fields():
            if name not in chosen.load_options:
                raise UnsupportedError(f"the load option {name}", chosen.name)
    try:
        model = chosen.load_model(location, merged)
    except (BridgeError, TypeError, ValueError):
        raise
    except Exception as error:
        text = f"{chosen.name} could not load {location}: {type(error).__name__}: {error}"
        raise ModelLoadError(text) from error
    if not isinstance(model, TextModel):
        raise TypeError(f"backend {chosen.name!r} returned {type(model).__name__}, not a TextModel")
    model.backend = model.backend or chosen.name
    model._life.name = sources.name_of(parsed, location, merged)
    if parsed.options.set_fields():
        model.defaults = parsed.options.over(model.defaults)
    return model


async def aload_model(
    source: str | os.PathLike[str],
    *,
    backend: str | None = None,
    config: LoadConfig | None = None,
    **load_options: Unpack[LoadOptions],
) -> TextModel:
    """Load a model in a thread, without blocking the event loop. Arguments and errors are those of `load_model`.

    If the awaiting task is cancelled, the model is closed as soon as it is loaded.
    """
    import asyncio
    import threading
    from concurrent.futures import Future, InvalidStateError

    loaded: Future[TextModel] = Future()

    def load() -> None:
        try:
            model = load_model(source, backend=backend, config=config, **load_options)
        except BaseException as error:
            with contextlib.suppress(InvalidStateError):
                loaded.set_exception(error)
            return
        try:
            loaded.set_result(model)
        except InvalidStateError:  # cancelled meanwhile
            model.close()

    # Not a daemon: at exit, Python waits for this thread. A thread inside a native library must not be killed.
    threading.Thread(target=load, name="inference-bridge-load").start()
    try:
        return await asyncio.wrap_future(loaded)
    except asyncio.CancelledError:
        if not loaded.cancel() and loaded.exception() is None:
            loaded.result().close()
        raise
