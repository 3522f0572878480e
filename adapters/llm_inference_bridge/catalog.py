# SPDX-License-Identifier: Apache-2.0
"""Which models llm is told of: what is configured and what is found, under each backend that takes it.

A model that makes embeddings is told of for `llm embed`, any other for prompts.

Nothing here raises. A wrong configuration file, or a backend that misbehaves, is told on stderr,
once, and everything else is offered: llm must list its other models, and mend things, whatever is
wrong with ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

import click

from inference_bridge import authoring, discover, registry

if TYPE_CHECKING:
    from inference_bridge import Backend, DiscoveredModel
    from inference_bridge.authoring import ConfiguredModel

_PAYS_FOR_SLOTS = frozenset({"llama_cpp"})
"""Backends that make memory for every slot: a command, which asks one question after the other, needs one."""

_warned: set[str] = set()
_hidden: ContextVar[bool] = ContextVar("_hidden", default=False)


class Kind(NamedTuple):
    """What an offer has beside its names. One of these serves thousands.

    `schema` and `tools`: whether those are among its capabilities, for llm asks that of every model it lists.
    `gguf`: it is a GGUF file, whose attachments llama.cpp reads.
    `key_name` is that of its key in `llm keys`, for one that may want a key; `key_env` the variable that
    the configuration file names for it.
    """

    backend: str
    capabilities: frozenset[str]
    schema: bool
    tools: bool
    gguf: bool = False
    embeddings: bool = False
    key_name: str | None = None
    key_env: str | None = None
    one_slot: bool = False


class Offer(NamedTuple):
    """One model for llm: its id there, what to load for it, and what is known of it before.

    `path` is where discovery found it, if it is sound and nothing is configured of how it is loaded.
    """

    model_id: str
    source: str
    kind: Kind
    path: str | None = None


def offered() -> list[Offer]:
    """Every model that has no problem, under each available backend that can load it; each id once."""
    offers: dict[str, Offer] = {}
    if _hidden.get():
        return []
    with _or_warning("models could not be looked for"):
        for offer in _offers():
            offers.setdefault(offer.model_id, offer)
    return list(offers.values())


@contextmanager
def hidden() -> Iterator[None]:
    """Within this, llm is told of none: it is asked for the models that others gave it."""
    before = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(before)


def _offers() -> Iterator[Offer]:
    # What the backend `llm` has, llm has already.
    names = [name for name in registry.names() if name != "llm"]
    backends = [backend for backend in map(registry.get, names) if _is_available(backend)]
    settings = authoring.load_configuration()
    for problem in settings.problems:
        _warn(f"{problem} (this entry of the configuration is left out)")
    found = discover()
    for entry in settings.models.values():
        with _or_warning(f"model {entry.name!r} is left out"):
            yield from _configured(entry, found, backends)
    takers: dict[tuple[str, bool, bool, bool], list[tuple[Backend, str, Kind]]] = {}
    for model in found:
        if model.problem is not None:
            continue
        alike = (model.format, model.images, model.audios, model.embeddings)
        if alike not in takers:
            may_load = [backend for backend in backends if _may_load(backend, model.format)]
            takers[alike] = [(backend, f"{backend.name}:", _kind(backend, model)) for backend in may_load]
        for backend, prefix, kind in takers[alike]:
            if backend.formats is not None or _can_load(backend, model.path):
                # By its path: the name may mean another model by then, the id would still say this one.
                yield Offer(prefix + model.name, model.path, kind, model.path)


def _configured(entry: ConfiguredModel, found: list[DiscoveredModel], backends: list[Backend]) -> Iterator[Offer]:
    target = authoring.parse_source(entry.source, None, registry.names())
    model = authoring.lookup(target.model, found)
    location = model.path if model is not None else target.model
    plain = model is not None and model.problem is None and not entry.load.set_fields()
    named = entry.backend or target.backend
    for backend in backends:
        if named is None:
            takes = not backend.only_when_named and _can_load(backend, location)
        else:
            takes = backend.name == named
        if takes:
            kind = _kind(backend, model)
            if entry.load.mmproj is not None:
                kind = kind._replace(capabilities=backend.capabilities)
            if entry.embeddings is not None:
                kind = kind._replace(embeddings=entry.embeddings)
            if entry.api_key_env is not None or "://" in target.model:
                kind = kind._replace(key_name=entry.name, key_env=entry.api_key_env)
            kind = kind._replace(one_slot=kind.one_slot and not entry.load.parallel_slots)
            yield Offer(f"{backend.name}:{entry.name}", entry.name, kind, location if plain else None)


def _kind(backend: Backend, model: DiscoveredModel | None) -> Kind:
    capabilities = backend.capabilities
    gguf = model is not None and model.format == "gguf"
    if model is not None and gguf:  # it sees and hears through its projector
        absent = {name for name, there in (("images", model.images), ("audios", model.audios)) if not there}
        capabilities = capabilities - absent
    embeddings = model is not None and model.embeddings
    one_slot = backend.name in _PAYS_FOR_SLOTS and not embeddings
    schema, tools = "json_schema" in capabilities, "tools" in capabilities
    return Kind(backend.name, capabilities, schema, tools, gguf, embeddings, one_slot=one_slot)


def _is_available(backend: Backend) -> bool:
    with _or_warning(f"backend {backend.name!r} is left out"):
        return bool(backend.availability())
    return False


def _may_load(backend: Backend, format: str) -> bool:
    """Whether models of this format, that were found, are the backend's; one that names no formats is asked of each."""
    return not backend.only_when_named and (backend.formats is None or format in backend.formats)


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
