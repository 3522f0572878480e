# SPDX-License-Identifier: Apache-2.0
"""Lists the models for llm: each configured and each found model, once for each backend that can load it.

A model with a known problem is listed too: its first prompt fails with a message that describes the problem.

The functions of this module raise no errors. A mistake in the configuration file or an error of a backend is printed
once on stderr, and all other models are listed. So the commands of llm keep working: the user may need one of them to
fix the problem.
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

_ALLOCATES_SLOTS = frozenset({"llama_cpp"})
"""Backends that allocate memory for every slot. A command runs one operation at a time, so it needs one slot."""

_warned: set[str] = set()
_hidden: ContextVar[bool] = ContextVar("_hidden", default=False)


class Kind(NamedTuple):
    """The properties of an offer that many offers share. Found models of the same kind share one object.

    Attributes:
        backend: The name of the backend.
        capabilities: The capabilities of the backend that the model may have.
        schema: Whether the model supports schemas. llm reads this for every model that it lists.
        tools: Whether the model supports tools. llm reads this for every model that it lists.
        gguf: Whether the model is a GGUF file, so that llama.cpp reads its attachments.
        embeddings: Whether the model is an embedding model.
        key_name: The name of the model's key in `llm keys`. None: the model needs no key.
        key_env: The environment variable of the key, from the configuration file. None: the file names none.
        one_slot: Whether a command loads the model with one slot.
        chat: Whether the model has a chat template. Without one it can only continue a text.
        ranks: Whether the model is a reranker, for which llm has no command.
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
    """One model for llm, with the properties that are known before it is loaded.

    Attributes:
        model_id: The id in llm.
        source: The source for `load_model`.
        kind: The properties.
        alias: The model's name without the backend. Of several offers of a model, only the first has it.
        problem: Why the model can't be loaded. None: no problem is known.
    """

    model_id: str
    source: str
    kind: Kind
    alias: str | None = None
    problem: str | None = None

    @property
    def shown_name(self) -> str:
        """The name that messages show to the user."""
        return self.alias or self.model_id


def offered() -> list[Offer]:
    """Return every model once for each available backend that can load it. Ids and aliases are unique.

    A model that no available backend can load is one offer with a problem. Inside `hidden` the list is empty.
    """
    offers: dict[str, Offer] = {}
    aliases: set[str] = set()
    if _hidden.get():
        return []
    with _or_warning("the search for models failed"):
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
    except (OSError, ValueError, TypeError):  # the file does not exist; or it is not valid, and llm reports that
        return set()


def own_aliases(offer: Offer, taken: Container[str]) -> list[str]:
    """Return the aliases to register: the model's name without the backend, if that name is not in `taken`."""
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
    # llm itself lists the models of the backend `llm`.
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
        for problem in settings.problems:  # so that llm knows the name, and the first prompt reports the problem
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
                # The source is the path: at the time of the first prompt, the name may refer to another model.
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
    if model is None and os.path.isabs(location):  # a path outside the searched directories
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
    # List it with its problem, so that llm knows the name, and the first prompt reports the problem.
    if named is not None and all(backend.name != named for backend in registered):
        problem = _unknown(named, target.model)
    able = _least_demanding(registered, "gguf" if model is None else model.format)
    shown = next((backend for backend in registered if backend.name == named), able)
    if shown is not None:
        problem = problem or _why_not(shown)
        yield Offer(f"{shown.name}:{entry.name}", entry.name, _kind(shown, model), entry.name, problem)


def _unknown(backend: str, model: str) -> str:
    """Return why an entry of the configuration file with this backend can't answer prompts in llm."""
    if backend == "llm":
        return f"it is a model of llm itself. Run: llm -m {shlex.quote(model)}"
    try:
        registry.get(backend)
    except BridgeError as error:
        return str(error)
    return f"the backend {backend} does not load it"


def _least_demanding(registered: Iterable[Backend], format: str) -> Backend | None:
    """Return the registered backend with the fewest requirements that may load this format. None: no backend may.

    The order of backends puts those with the fewest requirements last. A backend that states its formats is preferred.
    """
    able = [backend for backend in registered if _may_load(backend, format)]
    able = [backend for backend in able if backend.formats is not None] or able
    return able[-1] if able else None


def _why_not(backend: Backend) -> str:
    availability = registry.availability(backend)
    if availability:
        return f"the backend {backend.name} does not load it"
    return (
        f"the backend {backend.name} is not available: {availability.reason.rstrip('.')}. {availability.hint}".strip()
    )


def _kind(backend: Backend, model: DiscoveredModel | None) -> Kind:
    capabilities = backend.capabilities
    gguf = model is not None and model.format == "gguf"
    if model is not None and gguf:  # only its projector file lets it read images and sounds
        absent = {name for name, there in (("images", model.images), ("audios", model.audios)) if not there}
        capabilities = capabilities - absent
    embeddings = model is not None and model.embeddings
    one_slot = backend.name in _ALLOCATES_SLOTS and not embeddings
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
    with _or_warning(f"{source} is not listed for backend {backend.name!r}"):
        return backend.can_load(source)
    return False


@contextmanager
def _or_warning(consequence: str) -> Iterator[None]:
    """Return a context that prints an error as a warning, instead of raising it."""
    try:
        yield
    except Exception as error:
        _warn(f"{consequence}: {type(error).__name__}: {error}")


def _warn(message: str) -> None:
    """Print a warning on stderr, once in a process: llm requests the models several times in one command."""
    line = " ".join(message.split())
    if line not in _warned:
        _warned.add(line)
        click.echo(f"Warning: inference-bridge: {line}", err=True)
