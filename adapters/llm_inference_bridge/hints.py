# SPDX-License-Identifier: Apache-2.0
"""Prints a hint on stderr if an llm command names an unknown model, or if no model was found."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import click

from inference_bridge import registry
from inference_bridge.authoring import did_you_mean

if TYPE_CHECKING:
    from .catalog import Offer

_MODEL_MISSING = (
    "no model was found on this machine. Download one with: llm bridge pull chat (`llm bridge pull` lists more)"
)

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]*(gguf|mlx)[\w.-]*|mlx-community/[\w.-]+", re.IGNORECASE)
"""Matches names that can only be a repository of models, not a model of another llm plugin."""

_printed: set[str] = set()


def print_hint(own: Collection[str], others: Collection[str] | None, offers: Iterable[Offer]) -> None:
    """Print a hint if the running command can't find its model, or if `llm models list` has no model to list.

    Each hint is printed once in a process.

    Args:
        own: The ids and aliases of this library's models, of the kind that the command uses.
        others: The ids and aliases of other plugins' models; None if they are not known.
        offers: All models of this library, of every kind.
    """
    context = click.get_current_context(silent=True)
    if context is None:
        return
    if context.info_name == "list" and context.parent is not None and context.parent.info_name == "models":
        if not own and others is not None:
            _echo(_MODEL_MISSING)
        return
    name = _model_asked_for(context.params)
    if name is None or name in own or name in (others or ()):
        return
    backend, _, model = name.partition(":")
    other = next((offer for offer in offers if name in (offer.model_id, offer.alias)), None)
    if other is not None:
        _echo(f"model {name!r} {_use(other, name)}")
    elif not own and (others is not None or backend in registry.names()):
        _echo(_MODEL_MISSING)
    elif near := did_you_mean(name, own) or _longer(name, own):
        _echo(f"model {name!r} not found{near}")
    elif "/" in name and (backend in registry.names() or _REPOSITORY.fullmatch(name)):
        _echo(f"model {name!r} not found. To download it: llm bridge pull {model or name}")
    elif backend in registry.names():
        _echo(
            f"model {name!r} not found. `llm models` lists the models that were found; `llm bridge doctor` lists the "
            "directories that were searched"
        )


def _use(offer: Offer, name: str) -> str:
    """Return what a model of another kind does, and how to use it."""
    if offer.problem:
        return f"can't be loaded: {offer.problem}"
    if offer.kind.ranks:
        return f"is a reranker, for which llm has no command. In Python: load_model({name!r}).rerank(query, documents)"
    if offer.kind.embeddings:
        return f"is an embedding model and does not generate text. Run: llm embed -m {shlex.quote(name)} -c 'Hello'"
    return "generates text and is not an embedding model. `llm embed-models` lists the embedding models"


def _longer(name: str, own: Collection[str]) -> str:
    """Return a suggestion: the shortest name of `own` that contains `name`. "": no name does, or `name` is short."""
    longer = [one for one in own if len(name) > 3 and name.lower() in one.lower()]
    return f": did you mean {min(longer, key=len)!r}?" if longer else ""


def _model_asked_for(params: dict[str, Any]) -> str | None:
    name = params.get("model_id") or params.get("model")
    return name if isinstance(name, str) else None


def _echo(message: str) -> None:
    if message not in _printed:
        _printed.add(message)
        click.echo(f"inference-bridge: {message}", err=True)
