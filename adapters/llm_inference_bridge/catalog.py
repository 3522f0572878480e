# SPDX-License-Identifier: Apache-2.0
"""Lists the models for llm: each configured and each found model, once for each backend that can load it.

An embedding model is listed for `llm embed`, any other for prompts; a reranker is not listed. A model with a
known problem is listed too: its first prompt fails with a message that describes the problem.

Nothing here raises. A mistake in the configuration file or an error of a backend is printed once on stderr, and all
other models are listed: llm's own commands, which may be needed to fix the problem, must keep working.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

import click

from inference_bridge import BridgeError, authoring, discover, registry

if TYPE_CHECKING:
    from inference_bridge import Backend, DiscoveredModel
    from inference_bridge.authoring import ConfiguredModel

_PAYS_FOR_SLOTS = frozenset({"llama_cpp"})
"""Backends that allocate memory for every slot. A command asks one question at a time, so it needs one slot."""

_warned: set[str] = set()
_hidden: ContextVar[bool] = ContextVar("_hidden", default=False)


class Kind(NamedTuple):
    """The properties of an offer that many offers share. One object is used for all offers with the same properties.

    `schema`, `tools`: whether the model supports them. llm reads both for every model that it lists.
    `gguf`: the model is a GGUF file, so llama.cpp reads its attachments.
    `ranks`: the model is a reranker, for which llm has no command.
    `chat`: the model has a chat template; without one it can only continue a text.
    `key_name`: the name of the model's key in `llm keys`; None if it needs no key. `key_env`: the environment variable
    of the key, from the configuration file.
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
    """One model for llm: its id in llm, the source to load, and what is known before it is loaded.

    `alias`: the model's name without the backend; only the offer of the default backend has one.
    `problem`: why the model can't be loaded; None if no problem is known.
    """

    model_id: str
    source: str
    kind: Kind
    alias: str | None = None
    problem: str | None = None

    @property
    def shown_name(self) -> str:
        """The name to show to the user."""
        return self.alias or self.model_id


def offered() -> list[Offer]:
    """Return every model once for each available backend that can load it. Ids and aliases are unique."""
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
    """Return the aliases that the user has set (`llm aliases set`). They take precedence over this library's."""
    import llm

    try:
        directory = llm.user_dir()  # type: ignore[no-untyped-call]
        with open(directory / "aliases.json", encoding="utf-8") as file:
            return set(json.load(file))
    except (OSError, ValueError, TypeError):  # there is none, or llm tells of it
        return set()


def own_aliases(offer: Offer, taken: Container[str]) -> list[str]:
    """Return the aliases to register: the model's name without the backend, if no other model has that name."""
    return [offer.alias] if offer.alias is not None and offer.alias not in taken else []


@contextmanager
def hidden() -> Iterator[None]:
    """Return a context in which this plugin registers no models, to ask llm for the models of other plugins."""
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
    if able := _least_demanding(registered, "gguf"):
        for problem in settings.problems:  # so that llm knows the name, and its first prompt says what is wrong
            if problem.model and problem.model not in settings.models:
                kind = _kind(able, None)
                yield Offer(f"{able.name}:{problem.model}", problem.model, kind, problem.model, str(problem))
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
    problem = None if model is None or model.problem is None else f"{location}: {model.problem}"
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
        problem = _unknown(named, target.model)
    able = _least_demanding(registered, "gguf" if model is None else model.format)
    shown = next((backend for backend in registered if backend.name == named), able)
    if shown is not None:
        problem = problem or _why_not(shown)
        yield Offer(f"{shown.name}:{entry.name}", entry.name, _kind(shown, model), entry.name, problem)


def _unknown(backend: str, model: str) -> str:
    """Return why an entry of the configuration file with this backend can't be prompted."""
    if backend == "llm":
        return f"it is a model of llm, which has a name there. Run: llm -m {shlex.quote(model)}"
    try:
        registry.get(backend)
    except BridgeError as error:
        return str(error)
    return f"the backend {backend} does not load it"


def _least_demanding(registered: Iterable[Backend], format: str) -> Backend | None:
    """Return the last backend in order that loads this format: the later ones need the least to be available."""
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
    """Return whether the backend may load models of this format. A backend that states no formats may load any."""
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
    """Print a line on stderr, once in a process, because llm requests the models several times in one command."""
    line = " ".join(message.split())
    if line not in _warned:
        _warned.add(line)
        click.echo(f"Warning: inference-bridge: {line}", err=True)
