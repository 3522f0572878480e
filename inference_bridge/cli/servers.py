# SPDX-License-Identifier: Apache-2.0
"""Servers that are kept running between commands."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

import click

from . import tables


def report(as_json: bool) -> None:
    from ..backends.llama_server.lease import printable
    from ..backends.llama_server.warm import servers

    running = servers()
    if as_json:
        tables.show_json([asdict(server) for server in running])
        return
    if not running:
        click.echo("No server is kept running. A model's keep_alive, in seconds, keeps its server.", err=True)
        return
    now = time.time()
    rows = [
        [
            server.id,
            server.backend,
            printable(server.model),
            server.pid,
            tables.ago(now - server.started),
            f"{server.users} users"
            if server.users
            else f"ends in {tables.ago(max(server.keep_alive - server.idle, 0))}",
        ]
        for server in running
    ]
    tables.show(["ID", "BACKEND", "MODEL", "PROCESS", "UP FOR", "STATE"], rows)


def stop(ids: Sequence[str], every: bool) -> None:
    from ..backends.llama_server import warm

    if not ids and not every:
        raise click.UsageError("say which by its ID (`ps` lists them), or --all")
    for id in dict.fromkeys([*ids, *((server.id for server in warm.servers()) if every else ())]):
        if not warm.stop(id):
            raise click.ClickException(f"no server has the ID {id!r}: `ps` lists them")
        click.echo(f"{id} has ended.")
