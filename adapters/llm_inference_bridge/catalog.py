# SPDX-License-Identifier: Apache-2.0
"""Which models llm is told of: what is configured and what is found, under each backend that takes it.

Nothing here raises. A wrong configuration file, or a backend that misbehaves, is told on stderr,
once, and everything else is offered: llm must list its other models, and mend things, whatever is
wrong with ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import click

from inference_bridge import config, discovery, registry, sources, stores
from inference_bridge.backend import Backend
from inference_bridge.config import ConfiguredModel
from inference_bridge.errors import ConfigError
from inference_bridge.types import DiscoveredModel

_warned: set[str] = set()


@dataclass(frozen=True, slots=True)
class Offer:
    """One model for llm: its id there, what to load for it, and what it can do as far as that is known before."""

    model_id: str
    source: str
    backend: str
    capabilities: frozenset[str]


def offered() -> list[Offer]:
    """Every model that has no problem, under each available backend that can load it; each id once."""
    offers: dict[str, Offer] = {}
    with _or_warning("models could not be looked for"):
        for offer in _offers():
            offers.setdefault(offer.model_id, offer)
    return list(offers.values())


def _offers() -> Iterator[Offer]:
    backends = [backend for backend in map(registry.get, registry.names()) if _is_available(backend)]
    try:
        configured = config.load().models
        found = discovery.discover()
    except ConfigError as error:
        _warn(f"{error} (the configuration file is left aside)")
        configured = {}
        found = _discover_elsewhere()

    for entry in configured.values():
        with _or_warning(f"model {entry.name!r} is left out"):
            yield from _configured(entry, found, backends)
    for model in found:
        if model.problem is None:
            for backend in backends:
                if not backend.only_when_named and _can_load(backend, model.path):
                    # By its path: the name may mean another model by then, the id would still say this one.
                    yield _offer(backend, model.name, model.path, model)


def _configured(entry: ConfiguredModel, found: list[DiscoveredModel], backends: list[Backend]) -> Iterator[Offer]:
    target = sources.parse(entry.source, None, registry.names())
    model = discovery.lookup(target.model, found)
    location = model.path if model is not None else target.model
    named = entry.backend or target.backend
    for backend in backends:
        if named is None:
            takes = not backend.only_when_named and _can_load(backend, location)
        else:
            takes = backend.name == named
        if takes:
            yield _offer(backend, entry.name, entry.name, model)


def _offer(backend: Backend, name: str, source: str, model: DiscoveredModel | None) -> Offer:
    capabilities: frozenset[str] = getattr(backend, "capabilities", frozenset())
    if model is not None and model.format == "gguf" and model.mmproj is None:
        capabilities -= {"images"}  # a GGUF model sees through its projector
    return Offer(f"{backend.name}:{name}", source, backend.name, capabilities)


def _discover_elsewhere() -> list[DiscoveredModel]:
    """What is found without the configuration file."""
    directories = [*registry.model_directories(), *stores.directories()]
    return discovery.discover(*directories) if directories else []


def _is_available(backend: Backend) -> bool:
    with _or_warning(f"backend {backend.name!r} is left out"):
        return bool(backend.availability())
    return False


def _can_load(backend: Backend, source: str) -> bool:
    with _or_warning(f"backend {backend.name!r} is not offered {source}"):
        return backend.can_load(source)
    return False


@contextmanager
def _or_warning(consequence: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _warn(f"{consequence}: {type(error).__name__}: {error}")


def _warn(message: str) -> None:
    """One line on stderr, once a process: llm asks for the models several times in one command."""
    line = " ".join(message.split())
    if line not in _warned:
        _warned.add(line)
        click.echo(f"Warning: inference-bridge: {line}", err=True)
