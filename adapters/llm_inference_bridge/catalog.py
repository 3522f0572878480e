# SPDX-License-Identifier: Apache-2.0
"""The models that llm lists: each configured and each found model, under each backend that can load it.

An embedding model is listed for `llm embed`, any other for prompts; a reranker is known and not listed. A model with a
known problem is listed too: the problem is the answer to its first prompt.

Nothing here raises. A wrong configuration file, or a backend that misbehaves, is a line on stderr, once, and everything
else is listed: llm must be able to list its other models, and to repair things, whatever is wrong here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Iterator
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
    `ranks`: it is a reranker, for which llm has no command.
    `chat`: it has conversations; without a chat template a model continues a text.
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
    chat: bool = True
    ranks: bool = False


class Offer(NamedTuple):
    """One model for llm: its id there, what to load for it, and what is known of it before.

    `alias` is its name without the backend, on the backend that is taken where none is named.
    `problem` is why it can't be loaded; None if nothing is known to be wrong.
    """

    model_id: str
    source: str
    kind: Kind
    alias: str | None = None
    problem: str | None = None

    @property
    def shown_name(self) -> str:
        """What a user would call it."""
        return self.alias or self.model_id


def offered() -> list[Offer]:
    """Every model under each available backend that can load it; each id and each alias once."""
    offers: dict[str, Offer] = {}
    aliases: set[str] = set()
    if _hidden.get():
        return []
    with _or_warning("models could not be looked for"):
        for offer in _offers():
            if offer.model_id not in offers:
                if offer.alias in aliases:
                    offer = offer._replace(alias=None)
                elif offer.alias is not None:
                    aliases.add(offer.alias)
                offers[offer.model_id] = offer
    return list(offers.values())


def user_aliases() -> set[str]:
    """The aliases that the user has set (`llm aliases set`), which come before those of this library."""
    import llm

    try:
        directory = llm.user_dir()  # type: ignore[no-untyped-call]
        with open(directory / "aliases.json", encoding="utf-8") as file:
            return set(json.load(file))
    except (OSError, ValueError, TypeError):  # there is none, or llm tells of it
        return set()


def own_aliases(offer: Offer, taken: Container[str]) -> list[str]:
    """The aliases under which llm is told of a model: its name without the backend, if nothing else has that name."""
    return [offer.alias] if offer.alias is not None and offer.alias not in taken else []


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
    registered = registry.in_order(map(registry.get, names))
    backends = [backend for backend in registered if _is_available(backend)]
    settings = authoring.load_configuration()
    for problem in settings.problems:
        _warn(f"{problem} (this entry of the configuration is left out)" if problem.key else str(problem))
    found = discover()
    for entry in settings.models.values():
        with _or_warning(f"model {entry.name!r} is left out"):
            yield from _configured(entry, found, registered, backends)
    takers: dict[tuple[str, bool, bool, bool, bool, bool], list[tuple[Backend, str, Kind]]] = {}
    for model in found:
        alike = (model.format, model.images, model.audios, model.embeddings, model.chat, model.ranks)
        if alike not in takers:
            may_load = [backend for backend in backends if _may_load(backend, model.format)]
            takers[alike] = [(backend, f"{backend.name}:", _kind(backend, model)) for backend in may_load]
        for backend, prefix, kind in takers[alike]:
            if backend.formats is not None or _can_load(backend, model.path):
                # By its path: the name may mean another model by then, the id would still say this one.
                yield Offer(prefix + model.name, model.path, kind, model.name, model.problem)
        if not takers[alike] and (able := _least_demanding(registered, model.format)):
            why = model.problem or _why_not(able)
            yield Offer(f"{able.name}:{model.name}", model.path, _kind(able, model), model.name, why)


def _configured(
    entry: ConfiguredModel, found: list[DiscoveredModel], registered: list[Backend], backends: list[Backend]
) -> Iterator[Offer]:
    target = authoring.parse_source(entry.source, None, registry.names())
    model = authoring.lookup(target.model, found)
    location = model.path if model is not None else os.path.expanduser(target.model)
    if model is None and os.path.isabs(location):  # a path that no search comes by
        model = authoring.look_at(location)
    named = entry.backend or target.backend
    problem = None if model is None else model.problem
    listed = False
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
            if entry.load.chat_template is not None:
                kind = kind._replace(chat=True)
            if entry.api_key_env is not None or "://" in target.model:
                kind = kind._replace(key_name=entry.name, key_env=entry.api_key_env)
            kind = kind._replace(one_slot=kind.one_slot and not entry.load.parallel_slots)
            yield Offer(f"{backend.name}:{entry.name}", entry.name, kind, entry.name, problem)
            listed = True
    if listed:
        return
    # So that llm knows its name, and its first prompt says what is wrong.
    if named is not None and all(backend.name != named for backend in registered):
        known = [backend.name for backend in registered]
        problem = f"there is no backend {named!r}{authoring.did_you_mean(named, known)} (there are: {', '.join(known)})"
    able = _least_demanding(registered, "gguf" if model is None else model.format)
    shown = next((backend for backend in registered if backend.name == named), able)
    if shown is not None:
        problem = problem or _why_not(shown)
        yield Offer(f"{shown.name}:{entry.name}", entry.name, _kind(shown, model), entry.name, problem)


def _least_demanding(registered: Iterable[Backend], format: str) -> Backend | None:
    """The backend that is easiest to make available, of those that load models of this format: the last in order."""
    able = [backend for backend in registered if _may_load(backend, format)]
    able = [backend for backend in able if backend.formats is not None] or able
    return able[-1] if able else None


def _why_not(backend: Backend) -> str:
    told = registry.availability(backend)
    if told:
        return f"the backend {backend.name} does not load it"
    return f"the backend {backend.name} is not available: {told.reason.rstrip('.')}. {told.hint}".strip()


def _kind(backend: Backend, model: DiscoveredModel | None) -> Kind:
    capabilities = backend.capabilities
    gguf = model is not None and model.format == "gguf"
    if model is not None and gguf:  # it sees and hears through its projector
        absent = {name for name, there in (("images", model.images), ("audios", model.audios)) if not there}
        capabilities = capabilities - absent
    embeddings = model is not None and model.embeddings
    one_slot = backend.name in _PAYS_FOR_SLOTS and not embeddings
    chat = model is None or model.chat
    ranks = model is not None and model.ranks
    schema, tools = "json_schema" in capabilities, "tools" in capabilities and chat
    return Kind(backend.name, capabilities, schema, tools, gguf, embeddings, one_slot=one_slot, chat=chat, ranks=ranks)


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
