# SPDX-License-Identifier: Apache-2.0
"""The command `models`: the models that are on this machine or have a name, and the backends that can load them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

from ... import registry, sources
from ...availability import bridge_command
from ...backend import Backend
from ...catalog import config, discovery
from ...catalog.config import ConfiguredModel
from ...catalog.found import DiscoveredModel
from ...catalog.single import look_at
from ...errors import printable
from .. import tables


def listing(directories: Sequence[str] = (), only_problems: bool = False) -> list[dict[str, Any]]:
    """Return an entry for each model: first those with a name in the configuration file, then those that were found.

    Args:
        directories: The directories to search. Empty: the usual ones, and configured models are included.
        only_problems: Return only models that can't be loaded.
    """
    backends = [backend for name in registry.names() if registry.availability(backend := registry.get(name))]
    found = discovery.discover(*directories)
    entries = [] if directories else [_configured(one, found, backends) for one in config.load().models.values()]
    entries += [_found(model, backends) for model in found]
    return [entry for entry in entries if entry["problem"]] if only_problems else entries


def report(entries: Sequence[dict[str, Any]], as_json: bool, *, only_problems: bool = False) -> None:
    """Print the entries, and warn on stderr of mistakes in the configuration file.

    Args:
        entries: What `listing` returned.
        as_json: Print JSON.
        only_problems: Whether the entries are only those with a problem.
    """
    for problem in config.load().problems:
        left_out = " (this entry is left out)" if problem.key else ""
        click.echo(f"Warning: {printable(str(problem))}{left_out}", err=True)
    if as_json:
        tables.show_json(entries)
        return
    if not entries and only_problems:
        click.echo("No model has a problem.", err=True)
        return
    if not entries:
        from .recommended import advice

        click.echo(f"{advice()}. `{bridge_command('doctor')}` lists the directories that are searched.", err=True)
        return
    head = ["NAME", "BACKENDS", "SIZE", "BITS", "CONTEXT", "PROBLEM"]
    tables.show(head, [_row(entry) for entry in entries])


def _row(entry: dict[str, Any]) -> list[object]:
    return [
        entry["name"],
        ", ".join(entry["backends"]),
        tables.size(entry["size_bytes"]) if entry["size_bytes"] else "",
        entry["quant_bits"] or "",
        entry["context_length"] or "",
        entry["problem"] or "",
    ]


def _configured(one: ConfiguredModel, found: Sequence[DiscoveredModel], backends: Sequence[Backend]) -> dict[str, Any]:
    target = sources.parse(one.source, None, registry.names())
    model = discovery.lookup(target.model, found)
    location = model.path if model is not None else os.path.expanduser(target.model)
    if model is None and os.path.isabs(location):
        model = look_at(location)
    named = one.backend or target.backend
    takes = [backend.name for backend in backends if backend.name == named] if named else _takers(location, backends)
    problem = model.problem if model is not None else None
    if not takes and problem is None:
        see = f"see `{bridge_command('doctor')}`"
        problem = f"the backend {named} can't run here: {see}" if named else f"no backend here loads {one.source}"
    entry = _entry(one.name, takes, model) | {"source": one.source, "problem": problem}
    if model is None:  # a server: only its entry says it
        entry["embeddings"] = bool(one.embeddings)
    if one.load.context_length:
        entry["context_length"] = one.load.context_length
    return entry


def _found(model: DiscoveredModel, backends: Sequence[Backend]) -> dict[str, Any]:
    takes = [] if model.problem else _takers(model.path, backends)
    entry = _entry(model.name, takes, model)
    if not takes and not model.problem:
        see = f"see `{bridge_command('doctor')}`"
        entry["problem"] = f"no backend here loads {model.format.upper()} models: {see}"
    return entry


def _entry(name: str, takes: Sequence[str], model: DiscoveredModel | None) -> dict[str, Any]:
    model = model or DiscoveredModel("", name, "gguf")
    return {
        "name": name,
        "ids": [f"{backend}:{name}" for backend in takes],
        "backends": list(takes),
        "source": model.path,
        "model_type": model.model_type,
        "size_bytes": model.size_bytes,
        "quant_bits": model.quant_bits,
        "quant_group": model.quant_group,
        "context_length": model.context_length,
        "embeddings": model.embeddings and not model.ranks,
        "ranks": model.ranks,
        "images": model.images,
        "audios": model.audios,
        "problem": model.problem,
    }


def _takers(location: str, backends: Sequence[Backend]) -> list[str]:
    """Return the names of the backends that can load this, in order of preference."""
    return [
        backend.name
        for backend in registry.in_order(backends)
        if not backend.only_when_named and registry.can_load(backend, location) is True
    ]
