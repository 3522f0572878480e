# SPDX-License-Identifier: Apache-2.0
"""The models that are loaded in this process, one TextModel for each id and key."""

from __future__ import annotations

import asyncio
import gc
import os
import threading

import click

from inference_bridge import LoadConfig, TextModel, load_model

from .catalog import Offer

# Keyed by the process too: a forked child can't use the models of its parent, nor release its locks.
_models: dict[tuple[int, str, str | None], TextModel] = {}
_locks: dict[tuple[int, str, str | None], threading.Lock] = {}


def load(offer: Offer, key: str | None = None) -> TextModel:
    """The model, loaded the first time it is asked for, or after it was closed. Raises as load_model."""
    return _load(offer, key, _is_command())


async def aload(offer: Offer, key: str | None = None) -> TextModel:
    """`load` in a thread, so that the event loop goes on meanwhile."""
    return await asyncio.to_thread(_load, offer, key, _is_command())


def _is_command() -> bool:
    """Whether a command of llm asks, one question after the other. A program may ask several at once."""
    return click.get_current_context(silent=True) is not None


def _load(offer: Offer, key: str | None, command: bool) -> TextModel:
    place = (os.getpid(), offer.model_id, key)
    with _locks.setdefault(place, threading.Lock()):
        model = _models.get(place)
        if model is None or model.closed:
            if command:
                # To import an engine sets the garbage collector off, over all that llm has imported, for as long as
                # a small model takes to load. All of that is there to stay.
                gc.freeze()
            config = LoadConfig(api_key=key, parallel_slots=1 if offer.kind.one_slot and command else 0)
            model = _models[place] = load_model(offer.source, backend=offer.kind.backend, config=config)
    return model
