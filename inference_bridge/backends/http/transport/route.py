# SPDX-License-Identifier: Apache-2.0
"""The route of one operation: the server that it uses."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from .connection import Connection

if TYPE_CHECKING:
    from typing import Self


class Route:
    """The server that one operation uses. This class has a single server and counts nothing.

    The transfer enters the route before it sends and leaves it when the answer has ended.
    Subclasses count operations and tokens, and may have other servers to offer.

    Attributes:
        connection: The connection to the server. It changes only when the route is entered, in
            `move` and in `wait_over`.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def produced(self, count: int) -> None:
        """Count `count` tokens of the answer, or 1 for an answer that was read as a whole."""

    def refused(self) -> None:
        """Record that the server has too many requests."""

    def failed(self) -> None:
        """Record that the server did not answer, or that its answer broke off."""

    def move(self) -> bool:
        """Choose another server that this operation has not tried. Return False if no such server is left."""
        return False

    def wait_over(self) -> None:
        """Choose again among all servers, after a pause."""
