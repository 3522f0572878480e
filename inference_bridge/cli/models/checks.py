# SPDX-License-Identifier: Apache-2.0
"""Checks that a model can work, which `add` makes before it writes a name into the configuration file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

import click

from ... import registry, sources
from ...backend import Backend
from ...catalog.config import ConfiguredModel
from ...catalog.found import DiscoveredModel
from ...catalog.headers import gguf
from ...catalog.single import look_at
from ...errors import BridgeError, NoBackendAvailableError, printable


def check_name(name: str) -> None:
    """Raise ClickException for a name that no look-up can find."""
    wrong = None
    if not name.strip() or name != name.strip() or any(char in name for char in "\n\t\r"):
        wrong = "a name must not be empty, begin or end with a blank, or contain a tab or a line break"
    elif "://" in name or name.startswith(("/", "~", "./", "../")) or name in (".", ".."):
        wrong = "it would be taken for a path or a URL"
    elif name.partition(":")[0] in registry.names() and ":" in name:
        backend = name.partition(":")[0]
        wrong = f"{backend} before the colon is a backend: leave {backend}: out, or set --backend"
    if wrong:
        raise click.ClickException(f"{name!r} can't be a name: {wrong}")


def problem_of(entry: ConfiguredModel) -> str | None:
    """Return what is wrong with an entry of the configuration file, or None."""
    try:
        check_model(entry, warn=False)
    except (click.ClickException, BridgeError, ValueError) as error:
        return str(error)
    return None


def check_model(entry: ConfiguredModel, *, warn: bool = True) -> DiscoveredModel | None:
    """Check that a configured model can be loaded, as far as that can be told without loading it.

    Args:
        entry: The entry to check.
        warn: Whether to warn on stderr if a backend can't run on this machine yet.

    Returns:
        What the model's files say, or None for a server or for a name that only its backend understands.

    Raises:
        ClickException: The model can't be loaded, or a setting is wrong.
        ModelNotFoundError: The model does not exist.
        BackendNotFoundError: The backend does not exist.
    """
    target = sources.parse(entry.source, entry.backend, registry.names(), api_key="none is needed to look")
    named = None if target.backend is None else registry.get(target.backend)
    takes = None if named is None else lambda model: registry.can_load(named, model) is True
    location = sources.locate(target, takes)
    model = look_at(location) if os.path.exists(location) else None
    if model is not None and model.problem:
        raise click.ClickException(f"{location} can't be loaded: {printable(model.problem)}")
    if model is not None and model.format == "gguf" and entry.embeddings and not model.embeddings:
        raise click.ClickException(f"{location} generates text, not embeddings: leave --embeddings out")
    for option in ("mmproj", "draft_model", "ca_bundle"):
        _check_exists(option, [getattr(entry.load, option) or ""])
    _check_exists("adapters", entry.load.adapters or ())
    if model is not None and model.format == "gguf":
        _check_kind("mmproj", [entry.load.mmproj or ""], "projector")
        _check_kind("draft_model", [entry.load.draft_model or ""], "model")
        _check_kind("adapters", entry.load.adapters or (), "adapter")
    _check_key_variable(entry.api_key_env)
    _check_backend(named, location, model, entry, warn)
    return model


def _check_exists(option: str, paths: Iterable[str]) -> None:
    for path in paths:
        if os.path.isabs(path) and not os.path.exists(path):
            raise click.ClickException(f"{option}: there is no file {path}")


def _check_kind(option: str, paths: Iterable[str], kind: gguf.Kind) -> None:
    """Raise ClickException for a file that is damaged, or that is not of this kind."""
    for path in filter(None, paths):
        try:
            header = gguf.read_metadata(path)
        except gguf.GGUFError as error:
            raise click.ClickException(f"{option}: {path} can't be loaded: {error.problem}") from error
        if header.missing_bytes:
            end = f"it ends at byte {header.size_bytes:,} of {header.data_end:,}: fetch it again"
            raise click.ClickException(f"{option}: {path} can't be loaded: {end}")
        # Projectors that were converted long ago do not state what they are.
        stated = "projector" if "mmproj" in os.path.basename(path).lower() else header.kind
        if stated != kind:
            raise click.ClickException(f"{option}: {path} is not {_KINDS[kind]}")


_KINDS: dict[gguf.Kind, str] = {
    "projector": "a projector",
    "model": "a text model",
    "adapter": "a LoRA adapter",
}


def _check_key_variable(name: str | None) -> None:
    """Raise ClickException if this can't be a variable's name. The error does not quote it: it may be the key."""
    if name is not None and not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise click.ClickException(
            "api_key_env must be the name of an environment variable that holds the key, such as OFFICE_KEY; "
            "the key itself does not belong in a file"
        )


def _check_backend(
    named: Backend | None, location: str, model: DiscoveredModel | None, entry: ConfiguredModel, warn: bool
) -> None:
    """Raise ClickException if the backend does not load the model, or does not support one of its load options."""
    if named is not None and registry.can_load(named, location) is not True:
        able = [name for name in registry.names() if registry.can_load(registry.get(name), location) is True]
        able = [name for name in able if not registry.get(name).only_when_named]
        what = f"{model.format.upper()} models" if model is not None else location
        others = f"; these do: {', '.join(able)}" if able else ""
        raise click.ClickException(f"the backend {named.name} does not load {what}{others}")
    if named is not None:
        chosen = named
        told = registry.availability(named)
        if not told and warn:
            click.echo(f"Warning: {named.name} can't run on this machine yet: {told.reason}. {told.hint}", err=True)
    else:
        try:
            chosen = registry.default(location)
        except NoBackendAvailableError as error:
            if warn:
                click.echo(f"Warning: {error}", err=True)
            return
    if chosen.load_options is not None:
        for option in entry.load.effective().set_fields():
            if option not in chosen.load_options:
                raise click.ClickException(f"{chosen.name} does not support the load option {option}")
