# SPDX-License-Identifier: Apache-2.0
"""Servers that are kept running between commands."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict

import click

from ..catalog import config
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
    names = {one.source: name for name, one in config.load().models.items()}
    rows = [
        [
            server.id,
            server.backend,
            names.get(server.model) or _name(printable(server.model)),
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
    chosen = list(dict.fromkeys([*ids, *((server.id for server in warm.servers()) if every else ())]))
    for id in chosen:
        if not warm.stop(id):
            raise click.ClickException(f"no server has the ID {id!r}: `ps` lists them")
        click.echo(f"{id} has ended.")
    if not chosen:
        click.echo("No server was running.", err=True)


def _name(model: str) -> str:
    """The name of a server's model: that of its file, without the path."""
    return os.path.basename(model.rstrip("/")).removesuffix(".gguf") or model
