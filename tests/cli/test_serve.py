# SPDX-License-Identifier: Apache-2.0
"""The socket that `inference-bridge serve` listens on."""

from __future__ import annotations

import asyncio
import socket

from inference_bridge.cli.serve import _bound


async def test_connections_send_at_once() -> None:
    """Without TCP_NODELAY the parts of an answer, and the tokens of a stream, wait for acknowledgements."""
    accepted: asyncio.Queue[int] = asyncio.Queue()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        accepted.put_nowait(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with _bound("127.0.0.1", 0) as listener:
        async with await asyncio.start_server(connected, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            assert await accepted.get() != 0
            writer.close()
            await writer.wait_closed()
