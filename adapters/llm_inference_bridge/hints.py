# SPDX-License-Identifier: Apache-2.0
"""What a command of llm says on stderr where it names a model that there is not, or where there are none."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import click

from inference_bridge import registry
from inference_bridge.authoring import did_you_mean

_NO_MODEL = "no model was found on this machine. Download one with: llm bridge pull chat (`llm bridge pull` lists more)"

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]*(gguf|mlx)[\w.-]*|mlx-community/[\w.-]+", re.IGNORECASE)
"""What can only be a repository of models for this library, not a name of another plugin of llm."""

_told: set[str] = set()


def tell(own: Collection[str], others: Collection[str] | None) -> None:
    """Print a hint, at most once, where the command that runs can't find its model.

    Args:
        own: The ids and aliases of this library's models, of the kind that the command asks for.
        others: Those of the other plugins; None if they are not known.
    """
    context = click.get_current_context(silent=True)
    if context is None:
        return
    if context.info_name == "list" and context.parent is not None and context.parent.info_name == "models":
        if not own and others is not None:
            _echo(_NO_MODEL)
        return
    name = _model_asked_for(context.params)
    if name is None or name in own or name in (others or ()):
        return
    backend, _, model = name.partition(":")
    if not own and (others is not None or backend in registry.names()):
        _echo(_NO_MODEL)
    elif near := did_you_mean(name, own) or _longer(name, own):
        _echo(f"model {name!r} not found{near}")
    elif "/" in name and (backend in registry.names() or _REPOSITORY.fullmatch(name)):
        _echo(f"model {name!r} not found. To download it: llm bridge pull {model or name}")
    elif backend in registry.names():
        _echo(
            f"model {name!r} not found. `llm models` lists those that were found, `llm bridge doctor` the directories"
        )


def _longer(name: str, own: Collection[str]) -> str:
    """Suggest the shortest known name that contains what was typed."""
    longer = [one for one in own if len(name) > 3 and name.lower() in one.lower()]
    return f": did you mean {min(longer, key=len)!r}?" if longer else ""


def _model_asked_for(params: dict[str, Any]) -> str | None:
    name = params.get("model_id") or params.get("model")
    return name if isinstance(name, str) else None


def _echo(message: str) -> None:
    if message not in _told:
        _told.add(message)
        click.echo(f"inference-bridge: {message}", err=True)
