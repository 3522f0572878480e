# SPDX-License-Identifier: Apache-2.0
"""Asks servers which features they support, when `llm models --schemas` or `--tools` lists models by feature."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import click
import llm

from inference_bridge import LoadConfig, load_model

from .catalog import Offer

CONNECT_TIMEOUT = 3.0
"""Maximum seconds to wait for a connection to a server."""


def is_wanted() -> bool:
    """Return whether the running command lists models by their features."""
    context = click.get_current_context(silent=True)
    return context is not None and any(context.params.get(name) is True for name in ("schemas", "tools"))


def probed(offers: Iterable[Offer]) -> list[Offer]:
    """Return the offers, with the features that the servers support.

    For a model on a server, `schema` and `tools` say what the server supports. Both are False if it does not answer.
    """
    offers = list(offers)
    with ThreadPoolExecutor(8, "inference-bridge-probe") as pool:
        return list(pool.map(lambda one: one if one.kind.key_name is None else _probed(one), offers))


def _probed(offer: Offer) -> Offer:
    kind = offer.kind
    try:
        key = llm.get_key(None, kind.key_name, kind.key_env)
        config = LoadConfig(api_key=key, connect_timeout=CONNECT_TIMEOUT)
        with load_model(offer.source, backend=kind.backend, config=config) as model:
            capabilities = model.capabilities
    except Exception:
        capabilities = frozenset()
    schema, tools = "json_schema" in capabilities, "tools" in capabilities
    return offer._replace(kind=kind._replace(schema=schema, tools=tools))
