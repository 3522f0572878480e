# SPDX-License-Identifier: Apache-2.0
"""A TextModel for a model in the process that keeps models loaded."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import GenerationError, ServerCrashedError, ServerError
from ...model import TextModel
from ...options import GenerateConfig, LoadConfig
from ...request import Request
from ..http import bridge_model
from ..http.detection import server_info
from ..http.routing.pool import Pool
from ..http.routing.width import Width
from ..http.transport.connection import FIRST_TOKEN_TIMEOUT, Connection
from ..http.transport.errors import UnansweredError
from ..http.transport.route import Route
from . import daemon, peers

_STARTS = 3
"""Maximum number of times that one operation starts the process again."""

KEEP_ALIVE = "inference-bridge-keep-alive"
"""The header with the number of seconds for which the model stays loaded after the request."""


def load(backend: str, source: str, config: LoadConfig, files: Sequence[str] = ()) -> TextModel:
    """See `inference_bridge.backends.warm.load`."""
    daemon.check_possible(backend)
    name = spec(backend, source, config, files)
    server = KeptServer(config.keep_alive or 0.0, config.first_token_timeout or FIRST_TOKEN_TIMEOUT)
    request = Request("generate", GenerateConfig())
    try:
        facts = server_info.bridge_facts(server.route(request, None), request, name)
    except BaseException as error:
        server.close()
        if isinstance(error, UnansweredError):
            raise server.explain(error) from error
        raise
    return bridge_model.kind_of(facts)(backend, server, facts=facts, explain=server.explain, blocks=True)


def spec(backend: str, source: str, config: LoadConfig, files: Sequence[str] = ()) -> str:
    """Return the name of a model in the process: its source, load options, and the identity of its files, in JSON."""
    source = os.path.abspath(source) if os.path.exists(source) else source
    load = {name: value for name, value in config.set_fields().items() if name != "keep_alive"}
    load = {name: _absolute(value) if name in _PATHS else value for name, value in load.items()}
    paths = [source, *files, *(path for name in _PATHS for path in _listed(load.get(name)))]
    parts = {"backend": backend, "source": source, "load": load, "files": [_identity(path) for path in paths]}
    return json.dumps(parts, sort_keys=True)


_PATHS = ("adapters", "draft_model", "mmproj")


def _listed(value: Any) -> Iterable[str]:
    return () if value is None else (value,) if isinstance(value, str) else value


def _absolute(value: Any) -> Any:
    if isinstance(value, str):
        return os.path.abspath(value) if os.path.exists(value) else value
    return [_absolute(one) for one in value]


def _identity(path: str) -> list[Any]:
    try:
        found = os.stat(path)
    except OSError:
        return [path]
    identity: list[Any] = [os.path.realpath(path), found.st_size, found.st_mtime_ns]
    if stat.S_ISDIR(found.st_mode):
        identity += [_identity(os.path.join(path, name)) for name in sorted(os.listdir(path))]
    return identity


class KeptServer(Pool):
    """Connects to the process that keeps models loaded. The process is started again if it has ended.

    Args:
        keep_alive: Seconds for which a model stays loaded after its last use.
        first_token_timeout: Seconds until an answer begins, loading included.
    """

    def __init__(self, keep_alive: float, first_token_timeout: float) -> None:
        self._headers = {KEEP_ALIVE: str(keep_alive)}
        self._timeout = first_token_timeout
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._closed = False
        self._log = ""

    def first(self) -> Connection:
        with self._lock:
            held = self._connection
            if held is not None and (self._closed or _is_there(held)):
                return held
            self._connection = connection(daemon.ensure(), headers=self._headers, first_token_timeout=self._timeout)
        if held is not None:
            held.close()
        return self._connection

    def instead_of(self, failed: Connection) -> Connection | None:
        """Return a connection to a new process. None: the process of `failed` still runs."""
        if self._closed or _is_there(failed):
            return None
        with self._lock:
            self._log = daemon.log_of(str(failed.uds)) or self._log
            if self._connection is failed:
                self._connection = None
        failed.close()
        return self.first()

    def route(self, request: Request, width: Width | None) -> Route:
        return _KeptRoute(self)

    def explain(self, error: ServerError) -> GenerationError:
        held = self._connection
        return error if held is not None and _is_there(held) else self.crash()

    def crash(self) -> ServerCrashedError:
        """Return the error for a process that has ended, with the end of its log."""
        held = self._connection
        log = (daemon.log_of(str(held.uds)) if held is not None else "") or self._log
        said = f". Its log ends: {log}" if log else ""
        return ServerCrashedError(f"the process that keeps models loaded has ended{said}")

    def close(self) -> None:
        self._closed = True
        if self._connection is not None:
            self._connection.close()

    async def aclose(self) -> None:
        self._closed = True
        if self._connection is not None:
            await self._connection.aclose()


class _KeptRoute(Route):
    def __init__(self, server: KeptServer) -> None:
        super().__init__(server.first())
        self._server = server
        self._starts = 0

    def move(self) -> bool:
        """Start the process again if it has ended. Raises ServerCrashedError after `_STARTS` attempts."""
        if self._starts == _STARTS:
            if _is_there(self.connection):
                return False
            raise self._server.crash()
        self._starts += 1
        other = self._server.instead_of(self.connection)
        if other is None:
            return False
        self.connection = other
        return True


def _is_there(connection: Connection) -> bool:
    return daemon.is_alive(str(connection.uds))


def connection(
    path: str, *, headers: Mapping[str, str] | None = None, first_token_timeout: float = FIRST_TOKEN_TIMEOUT
) -> Connection:
    """Return a connection to the process whose socket is at `path`."""
    return Connection(
        "http://inference-bridge",
        headers=dict(headers or {}),
        uds=path,
        check_peer=peers.check_user,
        first_token_timeout=first_token_timeout,
        trust_env=False,
    )
