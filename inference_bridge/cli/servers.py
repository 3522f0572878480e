# SPDX-License-Identifier: Apache-2.0
"""Models that are kept loaded between commands."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec

import click

from ..catalog import config
from ..errors import printable
from . import tables


def report(as_json: bool) -> None:
    """Print the models that are kept loaded."""
    found = []
    if find_spec("httpx2") is not None:  # without it there can be none
        from ..backends.warm import control

        found = control.models()
    if as_json:
        tables.show_json([asdict(one) for one in found])
        return
    if not found:
        click.echo("No model is kept loaded. `keep-alive 5m` keeps those of llm commands.", err=True)
        return
    now = time.time()
    names = {one.source: name for name, one in config.load().models.items()}
    rows = [
        [
            one.id,
            one.backend,
            names.get(one.model) or _name(printable(one.model)),
            one.pid,
            tables.ago(now - one.started),
            f"{one.users} requests" if one.users else f"ends in {tables.ago(max(one.keep_alive - one.idle, 0))}",
        ]
        for one in found
    ]
    tables.show(["ID", "BACKEND", "MODEL", "PROCESS", "UP FOR", "STATE"], rows)


def stop(ids: Sequence[str], every: bool) -> None:
    """Unload models by their IDs, or end all processes that keep models."""
    if not ids and not every:
        raise click.UsageError("say which by its ID (`ps` lists them), or --all")
    stopped = []
    if find_spec("httpx2") is not None:
        from ..backends.warm import control

        for id in dict.fromkeys(ids):
            if not control.stop(id):
                raise click.ClickException(f"no model has the ID {id!r}: `ps` lists them")
            click.echo(f"{id} has ended.")
            stopped.append(id)
        for id in control.stop_all() if every else ():
            click.echo(f"{id} has ended.")
            stopped.append(id)
    if not stopped:
        click.echo("No model was kept loaded.", err=True)


def _name(model: str) -> str:
    """The name of a model: that of its file, without the path."""
    return os.path.basename(model.rstrip("/")).removesuffix(".gguf") or model
