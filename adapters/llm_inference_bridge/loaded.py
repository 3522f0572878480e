# SPDX-License-Identifier: Apache-2.0
"""The models that are loaded in this process, one TextModel for each id and key."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import nullcontext

from inference_bridge import LoadConfig, TextModel, load_model

from .catalog import Offer
from .garbage import is_command, uncollected

# Keyed by the process too: a forked child can't use the models of its parent, nor release its locks.
_models: dict[tuple[int, str, str | None], TextModel] = {}
_locks: dict[tuple[int, str, str | None], threading.Lock] = {}


def load(offer: Offer, key: str | None = None) -> TextModel:
    """The model, loaded the first time it is asked for, or after it was closed. Raises as load_model."""
    return _load(offer, key, is_command())


async def aload(offer: Offer, key: str | None = None) -> TextModel:
    """`load` in a thread, so that the event loop goes on meanwhile."""
    return await asyncio.to_thread(_load, offer, key, is_command())


def _load(offer: Offer, key: str | None, command: bool) -> TextModel:
    place = (os.getpid(), offer.model_id, key)
    with _locks.setdefault(place, threading.Lock()):
        model = _models.get(place)
        if model is None or model.closed:
            config = LoadConfig(api_key=key, parallel_slots=1 if offer.kind.one_slot and command else 0)
            with uncollected(command) if command else nullcontext():
                model = _models[place] = load_model(offer.source, backend=offer.kind.backend, config=config)
    return model
