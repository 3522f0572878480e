# SPDX-License-Identifier: Apache-2.0
"""The commands `ps` and `stop`: models that are kept loaded between commands."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec

import click

from ..availability import bridge_command
from ..catalog import config
from ..errors import printable
from . import tables


def report(as_json: bool) -> None:
    """Print the models that are kept loaded."""
    found = []
    if find_spec("httpx2") is not None:  # without it, no model can be kept loaded
        from ..backends.warm import control

        found = control.models()
    if as_json:
        tables.show_json([asdict(one) for one in found])
        return
    if not found:
        command = bridge_command("keep-alive 5m")
        click.echo(f"No model is kept loaded. `{command}` keeps those of llm commands.", err=True)
        return
    now = time.time()
    names = _names()
    rows = [
        [
            one.id,
            one.backend,
            names.get(one.model) or _base_name(one.model),
            one.pid,
            tables.ago(now - one.started),
            _state(one.users, one.keep_alive - one.idle),
        ]
        for one in found
    ]
    tables.show(["ID", "BACKEND", "MODEL", "PROCESS", "UP FOR", "STATE"], rows)


def _state(users: int, left: float) -> str:
    if users:
        return "1 request" if users == 1 else f"{users} requests"
    return f"ends in {tables.ago(max(left, 0))}"


def stop(ids: Sequence[str], every: bool) -> None:
    """Unload models by their IDs, or end all processes that keep models."""
    if not ids and not every:
        raise click.UsageError(f"name models by their IDs (`{bridge_command('ps')}` lists them), or use --all")
    stopped = []
    if find_spec("httpx2") is not None:
        from ..backends.warm import control

        names = _names()
        shown = {one.id: names.get(one.model) or _base_name(one.model) for one in control.models()}
        for id in dict.fromkeys(ids):
            if not control.stop(id):
                raise click.ClickException(f"no model has the ID {id!r}: `{bridge_command('ps')}` lists them")
            stopped.append(id)
            _say_ended(id, shown)
        for id in control.stop_all() if every else ():
            stopped.append(id)
            _say_ended(id, shown)
    if not stopped:
        click.echo("No model was kept loaded.", err=True)


def _say_ended(id: str, names: Mapping[str, str]) -> None:
    """Print which model was unloaded. A model that was still starting has no name yet."""
    click.echo(f"Unloaded {names[id]} ({id})." if id in names else f"Unloaded {id}.")


def _names() -> dict[str, str]:
    """Return the names in the configuration file by their source. Several names of one source are joined."""
    names: dict[str, list[str]] = {}
    for name, one in config.load().models.items():
        names.setdefault(one.source, []).append(name)
    return {source: ", ".join(several) for source, several in names.items()}


def _base_name(model: str) -> str:
    """Return the model's file name, without the directory and the ending .gguf."""
    return printable(os.path.basename(model.rstrip("/")).removesuffix(".gguf") or model)
