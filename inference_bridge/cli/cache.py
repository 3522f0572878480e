# SPDX-License-Identifier: Apache-2.0
"""The command `cache`: shows what the prefix cache on disk holds for each model, or clears it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

import click

from ..engine.prefix_cache import files as prefix_files
from . import tables


def report(as_json: bool) -> None:
    """Print what the prefix cache holds."""
    place = prefix_files.directory()
    entries = prefix_files.entries(place)
    models: dict[str, list[prefix_files.Entry]] = {}
    for entry in entries:
        models.setdefault(entry.model, []).append(entry)
    summaries = [_summary(model, found) for model, found in sorted(models.items())]
    size = sum(entry.size for entry in entries)
    if as_json:
        tables.show_json({"directory": place, "prefixes": len(entries), "bytes": size, "models": summaries})
        return
    if summaries:
        now = time.time()
        rows = [
            [
                os.path.basename(one["model"]),
                one["prefixes"],
                one["tokens"],
                tables.size(one["bytes"]),
                tables.ago(max(now - one["used"], 0)),
            ]
            for one in summaries
        ]
        tables.show(["MODEL", "PREFIXES", "TOKENS", "SIZE", "UNUSED FOR"], rows)
    click.echo(f"{_count(len(entries))}, {tables.size(size)}, in {place}", err=True)


def clear(as_json: bool) -> None:
    """Remove the prefix cache, and print what was removed."""
    place = prefix_files.directory()
    count, size = prefix_files.clear(place)
    if as_json:
        tables.show_json({"directory": place, "removed": count, "bytes": size})
    else:
        click.echo(f"Removed {_count(count)}, {tables.size(size)}, from {place}.")


def _summary(model: str, found: Iterable[prefix_files.Entry]) -> dict[str, Any]:
    entries = list(found)
    return {
        "model": model,
        "prefixes": len(entries),
        "tokens": sum(entry.tokens for entry in entries),
        "bytes": sum(entry.size for entry in entries),
        "used": max(entry.used for entry in entries),
    }


def _count(prefixes: int) -> str:
    return f"{prefixes} prefix" + ("" if prefixes == 1 else "es")
