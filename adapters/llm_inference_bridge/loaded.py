# SPDX-License-Identifier: Apache-2.0
"""The models that are loaded in this process, one TextModel for each id."""

from __future__ import annotations

import asyncio
import os
import threading

from inference_bridge import TextModel, load_model

from .catalog import Offer

# Keyed by the process too: a forked child can't use the models of its parent, nor release its locks.
_models: dict[tuple[int, str], TextModel] = {}
_locks: dict[tuple[int, str], threading.Lock] = {}


def load(offer: Offer) -> TextModel:
    """The model, loaded the first time it is asked for, or after it was closed. Raises as load_model."""
    key = (os.getpid(), offer.model_id)
    with _locks.setdefault(key, threading.Lock()):
        model = _models.get(key)
        if model is None or model.closed:
            model = _models[key] = load_model(offer.source, backend=offer.backend)
    return model


async def aload(offer: Offer) -> TextModel:
    """`load` in a thread, so that the event loop goes on meanwhile."""
    return await asyncio.to_thread(load, offer)
