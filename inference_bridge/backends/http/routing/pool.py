# SPDX-License-Identifier: Apache-2.0
"""The servers of one model, and the routes of operations to them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from ....request import Request
from ..transport.connection import Connection
from ..transport.route import Route
from .affinity import Affinity, prefixes
from .balance import Balance
from .width import Width

if TYPE_CHECKING:
    from typing import Self

_log = logging.getLogger(__name__)


class MeasuredRoute(Route):
    """A route to one server. Its answers adjust the number of running operations.

    `running` returns the number of answers of the request that have not ended.
    """

    def __init__(self, connection: Connection, width: Width, running: Callable[[], int] = lambda: 1) -> None:
        super().__init__(connection)
        self._width = width
        self._generation = 0
        self._running = running
        self._counted = 0

    def __enter__(self) -> Self:
        self._counted = self._running()
        self._generation = self._width.began(self._counted)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._width.ended(self._counted)

    def produced(self, count: int) -> None:
        running = self._running()
        if running < self._counted:
            self._width.ended(self._counted - running)
            self._counted = running
        self._width.produced(count, time.monotonic())

    def refused(self) -> None:
        self._generation = self._width.refused(self._generation)


class Pool:
    """Several servers of one model. It owns their connections.

    Attributes:
        connections: One for each server.
    """

    def __init__(self, connections: Sequence[Connection], slots: Sequence[int]) -> None:
        self.connections = tuple(connections)
        self.balance = Balance(slots)
        self.affinity = Affinity()

    def first(self) -> Connection:
        """Return the connection to the first server."""
        return self.connections[0]

    def route(self, request: Request, width: Width | None) -> Route:
        """Return the route of an operation. The server is chosen when the route is entered."""
        return _PooledRoute(self, prefixes(request.messages), width)

    def failed(self, index: int) -> None:
        """Record that the server does not answer. It is not used for a while."""
        if self.balance.failed(index, time.monotonic()):
            _log.warning("%s does not answer: it is tried again later", self.connections[index].base_url)

    def close(self) -> None:
        for connection in self.connections:
            connection.close()

    async def aclose(self) -> None:
        for connection in self.connections:
            await connection.aclose()


class _PooledRoute(Route):
    """The route of one operation to a server of the pool.

    The server that has the conversation in its cache is chosen, unless it is much busier than the others. Otherwise the
    least busy server is chosen.
    """

    def __init__(self, pool: Pool, conversation: Sequence[int], width: Width | None) -> None:
        super().__init__(pool.connections[0])
        self._pool = pool
        self._conversation = conversation
        self._width = width
        self._generation = 0
        self._tried: set[int] = set()
        self._chosen: int | None = None
        self._answered = False

    def __enter__(self) -> Self:
        if self._width is not None:
            self._generation = self._width.began()
        self._tried.clear()  # this may be the second request of a chat
        self._choose()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        if self._width is not None:
            self._width.ended()

    def produced(self, count: int) -> None:
        if not self._answered and self._chosen is not None:
            self._answered = True
            if self._pool.balance.answered(self._chosen):
                _log.info("%s answers again", self.connection.base_url)
        if self._width is not None:
            self._width.produced(count, time.monotonic())

    def refused(self) -> None:
        if self._width is not None:
            self._generation = self._width.refused(self._generation)

    def failed(self) -> None:
        if self._chosen is not None:
            self._pool.failed(self._chosen)

    def move(self) -> bool:
        self._leave()
        return self._choose()

    def wait_over(self) -> None:
        self._tried.clear()
        self._leave()
        self._choose()

    def _choose(self) -> bool:
        pool = self._pool
        preferred = pool.affinity.server(self._conversation)
        chosen = pool.balance.choose(time.monotonic(), preferred=preferred, tried=self._tried)
        if chosen is None:
            return False
        self._chosen, self._answered = chosen, False
        self._tried.add(chosen)
        pool.affinity.remember(self._conversation, chosen)
        self.connection = pool.connections[chosen]
        return True

    def _leave(self) -> None:
        chosen, self._chosen = self._chosen, None
        if chosen is not None:
            self._pool.balance.ended(chosen)
