# SPDX-License-Identifier: Apache-2.0
"""The socket that `inference-bridge serve` listens on."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
from pathlib import Path

import pytest

from inference_bridge.cli.serve import _announce, _bound


def test_the_command_that_is_shown_reads_a_key_in_any_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key_file = tmp_path / "Application Support" / "serve-key"  # as on macOS
    key_file.parent.mkdir()
    key_file.write_text("secret\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _announce(listener, key_file, ["a"])
    shown = re.search(r"Try: curl \S+ -H (.+)", capsys.readouterr().err)
    assert shown is not None
    done = subprocess.run(["sh", "-c", f"printf %s {shown[1]}"], capture_output=True, text=True, check=True)
    assert done.stdout == "Authorization: Bearer secret"


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
