# SPDX-License-Identifier: Apache-2.0
"""The models of a server. A model is loaded at its first request, and may be unloaded when no request uses it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from .. import authoring
from ..errors import ModelLoadError, ModelNotFoundError
from ..loading import aload_model
from ..model import TextModel
from .errors import RequestError
from .sizes import weight_bytes

_log = logging.getLogger(__name__)

Load = Callable[[str], Awaitable[TextModel]]


SHUTTING_DOWN = "the server is shutting down"


class _Entry:
    """One model, which is loading, loaded or failed."""

    def __init__(self, loading: asyncio.Task[TextModel]) -> None:
        self.loading = loading
        self.size = 0
        self.admitted = False
        """Whether the limits allowed it to be loaded. From then on it counts against them."""
        self.users = 0
        self.begun = time.time()
        """Seconds since the epoch."""
        self.used = time.monotonic()
        self.keep_alive: float | None = None
        """Seconds that it stays loaded unused, as the last request that set it says. None: as the pool says."""
        self.unload: asyncio.TimerHandle | None = None

    @property
    def model(self) -> TextModel | None:
        done = self.loading.done() and not self.loading.cancelled() and self.loading.exception() is None
        return self.loading.result() if done else None

    @property
    def usable(self) -> bool:
        """Whether requests may use this model or wait for it. False: it was closed, for example by an engine fault."""
        return self.model is None or not self.model.closed


@dataclass(frozen=True)
class Loaded:
    """A model of a pool.

    Attributes:
        name: Its name.
        begun: When its loading began, in seconds since the epoch.
        users: Number of requests that use it.
        idle: Seconds since the last request ended; 0 while requests use it.
        keep_alive: Seconds that it stays loaded unused. None: until the pool is closed.
    """

    name: str
    begun: float
    users: int
    idle: float
    keep_alive: float | None


class ModelPool:
    """Loads the models that clients ask for by name, and unloads unused ones.

    Args:
        sources: The sources of models by name.
        models: Models that the caller has loaded, and closes, by name.
        listed: Returns the names of further models that may be loaded. None: only `sources` and `models` are served.
        keep_alive: Seconds that an unused model stays loaded. None: until the pool is closed.
        most: Maximum number of loaded models. The least recently used idle model is unloaded for a new one.
        memory_limit: Maximum size of the weights of all loaded models, in bytes. The least recently used idle models
            are unloaded for a new one. If models in use are too large for that, the load waits until they are unused.
        queue: Maximum number of requests that wait for one model, in addition to those that it runs.
        load: Loads a source.
        size: Returns the size of the weights of a source, in bytes. It may block.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        models: Mapping[str, TextModel] | None = None,
        *,
        listed: Callable[[], Iterable[str]] | None = None,
        keep_alive: float | None = None,
        most: int | None = None,
        memory_limit: int | None = None,
        queue: int = 64,
        load: Load = aload_model,
        size: Callable[[str], int] = weight_bytes,
    ) -> None:
        self._sources = dict(sources)
        self._given = dict(models or {})
        self._listed = listed
        self._keep_alive = keep_alive
        self._most = most
        self._queue = queue
        self._memory_limit = memory_limit
        self._load = load
        self._size = size
        self._admission_lock = asyncio.Lock()
        self._changed = asyncio.Event()
        """Set when a model becomes idle or is unloaded."""
        self._entries: dict[str, _Entry] = {}
        self._closing: set[_Entry] = set()
        """Models that are being closed. Their memory still counts against the limits."""
        self._users: dict[str, int] = {}
        self._closed = False
        self._ending = False
        self._unloading: set[asyncio.Task[None]] = set()  # the event loop keeps only weak references to tasks

    async def names(self) -> list[str]:
        """Return the names that a client may ask for, sorted."""
        found: set[str] = {*self._sources, *self._given}
        if self._listed is not None:
            found.update(await asyncio.to_thread(lambda listed=self._listed: list(listed())))  # type: ignore[misc]
        return sorted(found)

    def loaded(self) -> dict[str, TextModel]:
        """Return the models that are loaded now, by name."""
        loaded = {name: model for name, entry in self._entries.items() if (model := entry.model) is not None}
        return {**self._given, **loaded}

    @asynccontextmanager
    async def use(
        self, name: str, wait: float | None = None, keep_alive: float | None = None
    ) -> AsyncIterator[TextModel]:
        """Load the model if it is not loaded, and keep it loaded during the `async with` block.

        Args:
            name: The model's name.
            wait: Maximum seconds to wait for the model to be loaded. The load continues after that. None: no limit.
            keep_alive: Seconds that the model stays loaded afterwards. None: the earlier value.

        Raises:
            RequestError: Too many requests wait for the model (429); it was not loaded within `wait`, or the server
                is shutting down (503).
            ModelNotFoundError: No model of that name is served.
            BridgeError: The model cannot be loaded.
        """
        if self._closed:
            raise RequestError(503, SHUTTING_DOWN)
        if name in self._given:
            with self._counted(name, self._given[name]):
                yield self._given[name]
            return
        entry = self._entries.get(name)
        if entry is None or not entry.usable:
            source = await self._source(name)
            entry = self._entries.get(name)  # another request may have begun to load it
            if entry is None or not entry.usable:
                entry = self._begin(name, source)
        entry.users += 1
        if keep_alive is not None:
            entry.keep_alive = keep_alive
        if entry.unload is not None:
            entry.unload.cancel()
            entry.unload = None
        try:
            model = await self._loaded(name, entry, wait)
            with self._counted(name, model):
                yield model
        finally:
            entry.users -= 1
            entry.used = time.monotonic()
            self._idle(name, entry)

    async def _loaded(self, name: str, entry: _Entry, wait: float | None) -> TextModel:
        done, _ = await asyncio.wait([entry.loading], timeout=wait)
        if not done:
            why = f"{name!r} is being loaded: try again later"
            raise RequestError(503, why, code="model_loading", headers={"retry-after": "2"})
        return entry.loading.result()

    def _counted(self, name: str, model: TextModel) -> _CountedRequest:
        """Count a request for the model. Raises RequestError if too many run or wait already."""
        if self._users.get(name, 0) >= model.parallel + self._queue:
            why = f"{model.parallel + self._queue} requests run or wait for {name!r}: try again later"
            raise RequestError(429, why, code="queue_full", headers={"retry-after": "1"})
        return _CountedRequest(self._users, name)

    async def _source(self, name: str) -> str:
        if name in self._sources:
            return self._sources[name]
        known = await self.names()
        if name not in known:
            have = ", ".join(known) or "none"
            raise ModelNotFoundError(
                f"model {name!r} not found{authoring.did_you_mean(name, known)}; available: {have}"
            )
        return name

    def _begin(self, name: str, source: str) -> _Entry:
        async def load() -> TextModel:
            async with self._admission_lock:  # one at a time, so that two models never get the same memory
                await self._admit(name, source)
            _log.info("loading %s", name)
            return await self._load(source)

        entry = self._entries[name] = _Entry(asyncio.get_running_loop().create_task(load()))

        def on_done(task: asyncio.Task[TextModel]) -> None:
            # A failed load is not kept, so that the next request tries again.
            if (task.cancelled() or task.exception() is not None) and self._entries.get(name) is entry:
                del self._entries[name]
                self._changed.set()
            else:  # all requests for the model may have ended while it was loaded
                self._idle(name, entry)

        entry.loading.add_done_callback(on_done)
        return entry

    async def _admit(self, name: str, source: str) -> None:
        """Unload idle models until the limits allow this one, and count it against them.

        Raises:
            ModelLoadError: The model is larger than the limit.
            RequestError: The server is shutting down.
        """
        entry, limit = self._entries[name], self._memory_limit
        if limit is not None:
            entry.size = await asyncio.to_thread(self._size, source)
            if entry.size > limit:
                raise ModelLoadError(f"{name!r} has {entry.size} bytes of weights, and the limit is {limit} bytes")
        while True:
            if self._closed:
                raise RequestError(503, SHUTTING_DOWN)
            others = [other for other in (*self._entries.values(), *self._closing) if other.admitted]
            too_large = limit is not None and sum(other.size for other in others) + entry.size > limit
            if not too_large and (self._most is None or len(others) < self._most):
                break
            idle = [(one.used, name) for name, one in self._entries.items() if one.model is not None and not one.users]
            if idle:
                await self._unload(self._removed(min(idle)[1]))
            elif too_large:
                self._changed.clear()
                await self._changed.wait()
            else:  # max_models is not strict: a model in use is never unloaded
                break
        entry.admitted = True

    def _idle(self, name: str, entry: _Entry) -> None:
        """If no request uses the model, tell waiting loads, and start the timer that unloads it."""
        if entry.users or entry.model is None or self._entries.get(name) is not entry:
            return
        self._changed.set()
        keep_alive = self._seconds(entry)
        if keep_alive is None or self._closed:
            return
        loop = asyncio.get_running_loop()
        if entry.unload is not None:
            entry.unload.cancel()
        entry.unload = loop.call_later(keep_alive, lambda: self._expire(name, entry))

    def _seconds(self, entry: _Entry) -> float | None:
        """Return the seconds that a model stays loaded unused. None: until the pool is closed."""
        if self._ending:
            return 0.0
        return self._keep_alive if entry.keep_alive is None else entry.keep_alive

    def status(self) -> list[Loaded]:
        """Return the models that the pool has loaded or is loading, the oldest first."""
        now = time.monotonic()
        found = [
            Loaded(name, one.begun, one.users, 0.0 if one.users else now - one.used, self._seconds(one))
            for name, one in self._entries.items()
        ]
        return sorted(found, key=lambda one: one.begun)

    def end(self) -> None:
        """Unload unused models now, and from now on each model as soon as it is unused."""
        self._ending = True
        for name, entry in list(self._entries.items()):
            self._idle(name, entry)

    async def unload(self, name: str) -> bool:
        """Unload a model, even if requests use it. Return False if it is not loaded."""
        entry = self._entries.get(name)
        if entry is None:
            return False
        await asyncio.wait([entry.loading])
        if self._entries.get(name) is entry:
            await self._unload(self._removed(name))
        return True

    def _expire(self, name: str, entry: _Entry) -> None:
        if not entry.users and self._entries.get(name) is entry:
            # Removed now: a request that arrives before the task runs must not get the model that the task closes.
            self._unloading.add(task := asyncio.get_running_loop().create_task(self._unload(self._removed(name))))
            task.add_done_callback(self._unloading.discard)

    def _removed(self, name: str) -> _Entry:
        """Remove a model from the models that requests can use. Return its entry, which the caller closes."""
        _log.info("unloading %s", name)
        entry = self._entries.pop(name)
        if entry.unload is not None:
            entry.unload.cancel()
        self._closing.add(entry)
        return entry

    async def _unload(self, entry: _Entry) -> None:
        try:
            if entry.model is not None:
                await entry.model.aclose()
        finally:
            self._closing.discard(entry)
            self._changed.set()

    async def aclose(self) -> None:
        """Close every model that the pool has loaded. Requests that still run end with ModelClosedError.

        Raises:
            Exception: The first error of a model's `close`, after all models were closed.
        """
        self._closed = True
        self._changed.set()
        # The requests that wait for a failing load report its error.
        await asyncio.gather(*(entry.loading for entry in self._entries.values()), return_exceptions=True)
        closing = [self._unload(self._removed(name)) for name in list(self._entries)]
        for result in await asyncio.gather(*closing, *self._unloading, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result


class _CountedRequest:
    """Counts one request that runs on or waits for a model, during the `with` block."""

    def __init__(self, users: dict[str, int], name: str) -> None:
        self._users = users
        self._name = name

    def __enter__(self) -> None:
        self._users[self._name] = self._users.get(self._name, 0) + 1

    def __exit__(self, *_: object) -> None:
        self._users[self._name] -= 1
