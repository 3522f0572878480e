# SPDX-License-Identifier: Apache-2.0
"""The models that are loaded in this process. LangChain objects with the same source and load options share one model.

A model stays loaded while a LangChain object exists that has used it and was not closed. In addition, the model that
was used last stays loaded, because LangChain often creates new chat models, for example one for each call if a field is
configurable. Each of them must find the model loaded. Any other model is dropped together with its last user. A dropped
TextModel frees its memory in its own worker thread.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from concurrent.futures import Future

from inference_bridge import LoadConfig, ModelLoadError, TextModel, load_model

_Key = tuple[int, str, str]


class Holder:
    """The models that one LangChain object has used."""

    def __init__(self) -> None:
        self.entries: set[_Entry] = set()


class _Entry:
    def __init__(self, key: _Key) -> None:
        self.key = key
        self.loaded: Future[TextModel] = Future()
        self.loaded.set_running_or_notify_cancel()  # otherwise a cancelled task would cancel the load for others too
        self.holders: weakref.WeakSet[Holder] = weakref.WeakSet()

    @property
    def usable(self) -> bool:
        """Whether the model is being loaded, or is loaded and open."""
        return not self.loaded.done() or (self.loaded.exception() is None and not self.loaded.result().closed)

    def load(self, source: str, config: LoadConfig) -> None:
        try:
            self.loaded.set_result(load_model(source, config=config))
        except Exception as error:
            self.loaded.set_exception(error)
        except BaseException:  # Ctrl-C interrupts only this thread, not the threads that wait for the model
            self.loaded.set_exception(ModelLoadError(f"loading {source} was interrupted"))
            raise


# The process is part of the key: a forked child can use neither the models of its parent nor its locks.
_entries: weakref.WeakValueDictionary[_Key, _Entry] = weakref.WeakValueDictionary()
_last: dict[int, _Entry] = {}
"""For each process: the entry that was used last. It stays loaded even if it has no holder."""
_locks: dict[int, threading.Lock] = {}


def load(source: str, config: LoadConfig, holder: Holder) -> TextModel:
    """Return the model, and load it if it is not loaded or was closed. Raises what load_model raises."""
    entry, new = _entry(source, config, holder)
    if new:
        entry.load(source, config)
    return entry.loaded.result()


async def aload(source: str, config: LoadConfig, holder: Holder) -> TextModel:
    """Do the same as `load`, without blocking the event loop."""
    entry, new = _entry(source, config, holder)
    if new:
        # Not a daemon: at exit, Python waits for a thread inside a native library.
        threading.Thread(target=entry.load, args=(source, config), name="inference-bridge-load").start()
    if entry.loaded.done():
        return entry.loaded.result()
    return await asyncio.wrap_future(entry.loaded)


def loaded(source: str, config: LoadConfig) -> TextModel | None:
    """Return the model. None: it is not loaded, or was closed."""
    entry = _entries.get(_key(source, config))
    return entry.loaded.result() if entry is not None and entry.loaded.done() and entry.usable else None


def release(holder: Holder) -> None:
    """Close the models that `holder` has used and that have no other holder."""
    with _lock():
        held = list(holder.entries)
        holder.entries.clear()
        for entry in held:
            entry.holders.discard(holder)
            if not entry.holders:
                if _entries.get(entry.key) is entry:
                    del _entries[entry.key]
                if _last.get(os.getpid()) is entry:
                    del _last[os.getpid()]
    for entry in held:
        if not entry.holders and entry.usable:
            entry.loaded.result().close()


def _entry(source: str, config: LoadConfig, holder: Holder) -> tuple[_Entry, bool]:
    """Return the model's entry, and whether it is new. If it is new, the caller must load the model."""
    key = _key(source, config)
    with _lock():
        entry = _entries.get(key)
        new = entry is None or not entry.usable
        if entry is None or new:
            entry = _entries[key] = _Entry(key)
        entry.holders.add(holder)
        holder.entries.add(entry)
        # Dropped after the lock is released: closing a model must not run under the lock.
        before = _last.get(os.getpid())  # noqa: F841
        _last[os.getpid()] = entry
    return entry, new


def _key(source: str, config: LoadConfig) -> _Key:
    return os.getpid(), source, repr(sorted(config.set_fields().items()))


def _lock() -> threading.Lock:
    return _locks.setdefault(os.getpid(), threading.Lock())
