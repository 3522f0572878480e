# SPDX-License-Identifier: Apache-2.0
"""The plugin for llm: run every model that is configured or found on this machine with `llm -m backend:name`.

In the other direction, `LLMTextModel` wraps any llm model as a TextModel, and `load_model("llm:NAME")`
loads an llm model by its id or alias.

llm imports this module for each of its commands, including `llm --help`. So the other modules are imported no earlier
than llm registers models, and an engine is imported when a model is loaded. This module does not import llm either,
because the registry of backends imports it to reach the backend `llm`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pluggy import HookimplMarker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import click
    from llm.models import ModelWithAliases

    from .reverse import LLMTextModel as LLMTextModel

__all__ = ["LLMTextModel"]

hookimpl = HookimplMarker("llm")  # the same as llm.hookimpl


@hookimpl(trylast=True)  # after the other plugins, so that the names of their models are known
def register_models(register: Callable[..., None], model_aliases: Sequence[ModelWithAliases]) -> None:
    import gc

    from .command import is_command

    if is_command():
        # Without this, the garbage collector examines all objects that llm's imports created, and does so several
        # times. That took 0.3 s of 1.75 s in a command that answers a prompt, and 0.3 s of 1.17 s in `llm models`.
        gc.freeze()
    from . import models
    from .catalog import offered, own_aliases, user_aliases

    others = {name for entry in model_aliases for name in (entry.model.model_id, *entry.aliases)} | user_aliases()
    own: set[str] = set()
    offers = offered()
    if is_command() and any(offer.kind.key_name is not None for offer in offers):
        from .probing import is_wanted, probed

        offers = probed(offers) if is_wanted() else offers
    for offer in offers:
        if offer.kind.embeddings or offer.kind.ranks:
            continue
        aliases = own_aliases(offer, others)
        own.update((offer.model_id, *aliases))
        if offer.kind.key_name is None:
            register(models.InferenceBridge(offer), models.AsyncInferenceBridge(offer), aliases)
        else:
            register(models.RemoteInferenceBridge(offer), models.AsyncRemoteInferenceBridge(offer), aliases)
    if is_command():
        from .hints import print_hint

        print_hint(own, others, offers)


@hookimpl(trylast=True)
def register_embedding_models(register: Callable[..., None]) -> None:
    from .catalog import offered, own_aliases, user_aliases
    from .command import is_command
    from .embeddings import InferenceBridgeEmbedding

    taken = user_aliases()
    own: set[str] = set()
    offers = offered()
    for offer in offers:
        if offer.kind.embeddings and not offer.kind.ranks:
            aliases = own_aliases(offer, taken)
            own.update((offer.model_id, *aliases))
            register(InferenceBridgeEmbedding(offer), aliases)
    if is_command():
        from .hints import print_hint

        print_hint(own, None, offers)


@hookimpl
def register_commands(cli: click.Group) -> None:
    from inference_bridge.cli.commands import bridge

    cli.add_command(bridge, "bridge")


def __getattr__(name: str) -> object:
    if name != "LLMTextModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .reverse import LLMTextModel

    return LLMTextModel
