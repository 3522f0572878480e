# SPDX-License-Identifier: Apache-2.0
"""The models that are loaded in this process: one for all chat models and embeddings that ask for the same.

LangChain makes new chat models freely, one for each call where a field is configurable, and each
must find the model loaded. So a model stays loaded until it is released by all that have used it
and are still there.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from concurrent.futures import Future

from inference_bridge import LoadConfig, ModelLoadError, TextModel, load_model


class Holder:
    """Who uses a model."""


class _Entry:
    def __init__(self) -> None:
        self.loaded: Future[TextModel] = Future()
        self.loaded.set_running_or_notify_cancel()  # so that a task that is cancelled cancels no other's wait
        self.holders: weakref.WeakSet[Holder] = weakref.WeakSet()

    @property
    def usable(self) -> bool:
        """Whether it is being loaded, or is open."""
        return not self.loaded.done() or (self.loaded.exception() is None and not self.loaded.result().closed)

    def load(self, source: str, config: LoadConfig) -> None:
        try:
            self.loaded.set_result(load_model(source, config=config))
        except Exception as error:
            self.loaded.set_exception(error)
        except BaseException:  # Ctrl-C is this thread's, not that of those who wait
            self.loaded.set_exception(ModelLoadError(f"loading {source} was interrupted"))
            raise


# Keyed by the process too: a forked child can't use the models of its parent, nor its locks.
_Key = tuple[int, str, str]
_entries: dict[_Key, _Entry] = {}
_locks: dict[int, threading.Lock] = {}


def load(source: str, config: LoadConfig, holder: Holder) -> TextModel:
    """The model, loaded the first time it is asked for, or after it was closed. Raises as load_model."""
    entry, new = _entry(source, config, holder)
    if new:
        entry.load(source, config)
    return entry.loaded.result()


async def aload(source: str, config: LoadConfig, holder: Holder) -> TextModel:
    """`load`, and the event loop goes on meanwhile."""
    entry, new = _entry(source, config, holder)
    if new:
        # Not a daemon: at exit, a thread inside a native library is waited for, never killed.
        threading.Thread(target=entry.load, args=(source, config), name="inference-bridge-load").start()
    if entry.loaded.done():
        return entry.loaded.result()
    return await asyncio.wrap_future(entry.loaded)


def loaded(source: str, config: LoadConfig) -> TextModel | None:
    """The model, if it is loaded."""
    entry = _entries.get(_key(source, config))
    return entry.loaded.result() if entry is not None and entry.loaded.done() and entry.usable else None


def release(holder: Holder) -> None:
    """Close the models that `holder` has used, and nobody else that is there has."""
    with _lock():
        held = [(key, entry) for key, entry in _entries.items() if holder in entry.holders]
        for key, entry in held:
            entry.holders.discard(holder)
            if not entry.holders:
                del _entries[key]
    for _, entry in held:
        if not entry.holders and entry.usable:
            entry.loaded.result().close()


def _entry(source: str, config: LoadConfig, holder: Holder) -> tuple[_Entry, bool]:
    """The model's entry, and whether it is new, and the caller's to load."""
    key = _key(source, config)
    with _lock():
        entry = _entries.get(key)
        new = entry is None or not entry.usable
        if entry is None or new:
            entry = _entries[key] = _Entry()
        entry.holders.add(holder)
        return entry, new


def _key(source: str, config: LoadConfig) -> _Key:
    return os.getpid(), source, repr(sorted(config.set_fields().items()))


def _lock() -> threading.Lock:
    return _locks.setdefault(os.getpid(), threading.Lock())
