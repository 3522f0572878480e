# SPDX-License-Identifier: Apache-2.0
"""The process that keeps a user's models loaded between programs: this server on a UNIX socket.

    python -m inference_bridge.serve.daemon DIRECTORY DESCRIPTOR

A program starts the process (`backends.warm.daemon`) and passes the socket to it as an open file descriptor. The
process ends, and removes its directory, when no model is loaded any more. A model's name is JSON that says what to load
and with which options. So a program can send a request without registering the model first, even after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import uvicorn
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import __version__
from ..backends.warm import daemon as warm_daemon
from ..backends.warm.control import STATUS, STOP, UNLOAD
from ..backends.warm.model import KEEP_ALIVE as KEEP_ALIVE_HEADER
from ..errors import ModelNotFoundError
from ..loading import aload_model
from ..model import TextModel
from ..options import LoadConfig
from .application import application
from .bridge import KEEP_ALIVE
from .connections import bounded
from .errors import RequestError
from .guard import read_json
from .pool import ModelPool
from .sizes import weight_bytes

FIRST_SECONDS = 60.0
"""Seconds after which the process ends if no model was requested."""

TICK_SECONDS = 0.5
"""Seconds between checks whether a model is still loaded."""

LATE_SECONDS = 0.25
"""Seconds in which programs that found the socket before its removal can still send a request."""

GRACE_SECONDS = 5
"""Seconds in which running requests can end after a stop signal."""

HEAD_SECONDS = 600
"""Seconds for which an idle connection is kept."""

MAX_BODY = 512 << 20
"""Maximum size of a body in bytes. A request may have several attachments of 100 MiB each."""

MEMORY_SHARE = 0.75
"""The share of the machine's memory that the weights of all models may take. The rest is for KV caches."""


class Spec:
    """What to load, as a model's name says it. See `backends.warm.model.spec`.

    Raises:
        ModelNotFoundError: The name does not say what to load.
    """

    def __init__(self, name: str) -> None:
        try:
            value = json.loads(name)
            self.backend, self.source = str(value["backend"]), str(value["source"])
            self.load = LoadConfig().with_options(value["load"])
        except (ValueError, TypeError, LookupError) as error:
            raise ModelNotFoundError(f"{name!r} does not say what to load: {error}") from None


class Models(ModelPool):
    """The models that programs have requested. Every name is accepted that says what to load."""

    async def names(self) -> list[str]:
        return [one.name for one in self.status()]

    async def _source(self, name: str) -> str:
        Spec(name)
        return name


def _limit() -> int:
    """Return the size of all weights, in bytes, above which idle models are unloaded."""
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * MEMORY_SHARE)


def _size(name: str) -> int:
    # A larger model may run from its file or on a GPU. With its size capped, it is loaded once the others are unloaded.
    return min(weight_bytes(Spec(name).source), _limit())


class Daemon:
    """Serves the models of one process, and ends the process when no model is loaded.

    Args:
        directory: The process's own directory, which it removes.
        listener: The process's socket.
    """

    def __init__(self, directory: str, listener: socket.socket) -> None:
        self._directory = directory
        self._listener = listener
        self.pool = Models({}, keep_alive=0.0, memory_limit=_limit(), queue=1 << 16, load=self._load, size=_size)
        self._served = False
        """Whether a model was requested. From then on, the process ends when no model is loaded."""
        self._server: uvicorn.Server | None = None

    async def _load(self, name: str) -> TextModel:
        self._served = True
        spec = Spec(name)
        return await aload_model(spec.source, backend=spec.backend, config=spec.load)

    def run(self) -> None:
        routes = [
            Route(STATUS, self._status),
            Route(UNLOAD, self._unload, methods=["POST"]),
            Route(STOP, self._stop, methods=["POST"]),
        ]
        served = application(self.pool, more_routes=routes, max_body=MAX_BODY, body_seconds=HEAD_SECONDS)
        config = uvicorn.Config(
            _KeepAliveHeader(served),
            log_level="warning",
            access_log=False,
            server_header=False,
            http=bounded(HEAD_SECONDS),
            timeout_keep_alive=HEAD_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        self._server = server = uvicorn.Server(config)
        try:
            asyncio.run(self._serve(server))
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    async def _serve(self, server: uvicorn.Server) -> None:
        ending = asyncio.get_running_loop().create_task(self._end_when_unused())
        try:
            await server.serve(sockets=[self._listener])
        finally:
            ending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ending

    async def _end_when_unused(self) -> None:
        """End the process when no model is loaded any more."""
        idle = 0.0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self.pool.status():
                idle = 0.0
                continue
            idle += TICK_SECONDS
            if (self._served or idle >= FIRST_SECONDS) and self._directory_removed():
                break
        await self._end()

    def _directory_removed(self) -> bool:
        """Remove the directory, so that no other program finds this process.

        Returns:
            Whether no directory is left. False: another program holds the lock, or a model is loaded or loading.
        """
        import fcntl

        base = os.path.dirname(self._directory)
        try:
            descriptor = os.open(os.path.join(base, warm_daemon.LOCK), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:  # the parent directory was removed
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self.pool.status():
                return False
            shutil.rmtree(self._directory, ignore_errors=True)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    async def _end(self) -> None:
        """End the server once the last models are unloaded."""
        self.pool.end()
        await asyncio.sleep(LATE_SECONDS)
        while self.pool.status():  # noqa: ASYNC110 - once in the life of the process
            await asyncio.sleep(TICK_SECONDS)
        assert self._server is not None
        self._server.should_exit = True

    # ------------------------------------------------ routes

    async def _status(self, _: Request) -> Response:
        models = [{**asdict(one), **_shown(one.name)} for one in self.pool.status()]
        return JSONResponse({"data": models, "pid": os.getpid(), "version": __version__})

    async def _unload(self, request: Request) -> Response:
        try:
            body = await read_json(request, 1 << 20, 10.0)
        except RequestError as error:
            return error.response(UNLOAD)
        name = body.get("name") if isinstance(body, dict) else None
        if not isinstance(name, str):
            return RequestError(400, "name is required", param="name").response(UNLOAD)
        found = await self.pool.unload(name)
        return JSONResponse({"data": found})

    async def _stop(self, _: Request) -> Response:
        shutil.rmtree(self._directory, ignore_errors=True)
        return JSONResponse({"data": True}, background=BackgroundTask(self._unload_all))

    async def _unload_all(self) -> None:
        assert self._server is not None
        try:
            for one in self.pool.status():
                await self.pool.unload(one.name)
        finally:  # the process also ends if a model can't be closed
            self._server.should_exit = True


def _shown(name: str) -> Mapping[str, Any]:
    spec = Spec(name)
    return {"backend": spec.backend, "source": spec.source}


class _KeepAliveHeader:
    """ASGI middleware that reads the header KEEP_ALIVE_HEADER: how long a program's model stays loaded."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._header = KEEP_ALIVE_HEADER.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope.get("headers", ()):
            if name == self._header:
                with contextlib.suppress(ValueError):
                    scope[KEEP_ALIVE] = max(float(value), 0.0)
        await self._app(scope, receive, send)


def main() -> None:
    directory, descriptor = sys.argv[1], int(sys.argv[2])
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # uvicorn raises the signal again when it ends. This handler makes it a SystemExit, so that the clean-up runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.umask(0o077)
    with socket.socket(fileno=descriptor) as listener:
        Daemon(directory, listener).run()


if __name__ == "__main__":
    main()
