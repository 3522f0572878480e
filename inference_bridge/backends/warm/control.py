# SPDX-License-Identifier: Apache-2.0
"""Lists and unloads the models that are kept loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from ...errors import ServerError
from . import daemon
from .model import connection

STATUS = "/daemon/status"
UNLOAD = "/daemon/unload"
STOP = "/daemon/stop"

_ID_LENGTH = 12
_ANSWER_SECONDS = 5.0
_UNLOAD_SECONDS = 60.0
_END_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A model that is kept loaded.

    Attributes:
        id: Identifies the model for `stop`.
        backend: The backend that has loaded it.
        model: The model's path, or a name that the backend understands.
        pid: The id of the process that keeps it.
        version: The version of this package in that process.
        started: When its loading began, in seconds since the epoch.
        keep_alive: Seconds that it stays loaded unused.
        users: Number of requests that use it.
        idle: Seconds since the last request ended. 0: a request uses it.
    """

    id: str
    backend: str
    model: str
    pid: int
    version: str
    started: float
    keep_alive: float
    users: int
    idle: float


def models() -> list[KeptModel]:
    """Return this user's models that are kept loaded, the oldest first."""
    found = [one for path in daemon.sockets() for _, one in _models(path)]
    return sorted(found, key=lambda one: one.started)


def stop(id: str) -> bool:
    """Unload the model `id`, even if it is in use, and wait until it is unloaded. False: no such model is loaded.

    Raises:
        ServerError: The process does not answer, or does not end.
    """
    for path in daemon.sockets():
        for name, one in _models(path):
            if one.id == id:
                _ask("POST", path, UNLOAD, {"name": name}, seconds=_UNLOAD_SECONDS)
                if not list(_models(path)):
                    _wait(one.pid)
                return True
    return False


def stop_all() -> list[str]:
    """End every process that keeps models of this user loaded. Returns the ids of the models that were loaded."""
    stopped = []
    for path in daemon.sockets():
        said = _ask("GET", path, STATUS)
        if said is None:
            continue
        stopped += [one.id for _, one in _models(path)]
        _ask("POST", path, STOP)
        _wait(said["pid"])
    return stopped


def _wait(pid: int) -> None:
    if not daemon.wait_until_gone(pid, _END_SECONDS):
        raise ServerError(f"process {pid}, which keeps models loaded, does not end: kill it")


def _models(path: str) -> Iterator[tuple[str, KeptModel]]:
    """Yield the models of a process, each with its name in that process."""
    said = _ask("GET", path, STATUS)
    if said is None:
        return
    for one in said["data"]:
        id = hashlib.sha256(one["name"].encode()).hexdigest()[:_ID_LENGTH]
        numbers = {name: one[name] for name in ("keep_alive", "users", "idle")}
        yield (
            one["name"],
            KeptModel(id, one["backend"], one["source"], said["pid"], said["version"], one["begun"], **numbers),
        )


def _ask(
    method: str, path: str, route: str, body: Mapping[str, Any] | None = None, seconds: float = _ANSWER_SECONDS
) -> Any:
    """Return the answer of the process whose socket is at `path`; None if it has ended meanwhile."""
    line = connection(path)
    try:
        answer = line.client().request(method, line.base_url + route, json=body, timeout=seconds)
        answer.raise_for_status()
        return answer.json()
    except httpx2.TimeoutException as error:
        raise ServerError("the process that keeps models loaded does not answer: kill it") from error
    except httpx2.TransportError:
        return None
    except httpx2.HTTPStatusError as error:
        raise ServerError(f"the process that keeps models loaded refuses: {error.response.text}") from error
    finally:
        line.close()
