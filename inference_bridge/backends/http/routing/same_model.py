# SPDX-License-Identifier: Apache-2.0
"""Checks that several servers have the same model, and combines their properties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ....errors import ModelLoadError
from ..facts import ServerFacts

_MUST_AGREE = {
    "server": "are different programs",
    "native": "have different APIs",
    "api": "have their API at different paths",
    "renders": "use the model's chat template in different ways",
    "knows_tools": "have chat templates of which only some know tools",
}
"""Facts that decide which requests are sent, each with the problem if they differ."""


def combined(found: Mapping[str, ServerFacts]) -> ServerFacts:
    """Return the facts that are true for every one of the servers.

    Args:
        found: The facts of each server, by its address.

    Returns:
        The common capabilities and options, the shortest context, and the sum of the slots.

    Raises:
        ModelLoadError: They have different models, or need different requests.
    """
    facts = list(found.values())
    first = facts[0]
    for name, what in _MUST_AGREE.items():
        _check(found, name, {address: getattr(one, name) for address, one in found.items()}, what)
    if first.server != "llama.cpp":  # it names a model by its path, and accepts any name
        models = {address: one.model for address, one in found.items()}
        _check(found, "model", models, "have different models. Set model= to one that all of them have")
    for name in ("architecture", "vocab_size", "hidden_size"):
        said = {address: value for address, one in found.items() if (value := getattr(one.info, name))}
        _check(found, name, said, "have different models")
    lengths = [one.info.context_length for one in facts if one.info.context_length]
    capabilities = frozenset.intersection(*(one.capabilities for one in facts))
    return replace(
        first,
        info=replace(first.info, context_length=min(lengths, default=0)),
        slots=sum(one.slots for one in facts),
        slots_known=all(one.slots_known for one in facts),
        capabilities=capabilities,
        options=frozenset.intersection(*(one.options for one in facts)),
        takes_media=all(one.takes_media for one in facts),
        assumed=frozenset.union(*(one.assumed for one in facts)) & capabilities,
        reasons_if_asked=all(one.reasons_if_asked for one in facts),
        reasons_by_degree=all(one.reasons_by_degree for one in facts),
    )


def _check(found: Mapping[str, ServerFacts], name: str, said: Mapping[str, object], what: str) -> None:
    if len(set(said.values())) > 1:
        listed = ", ".join(f"{address}: {value!r}" for address, value in said.items())
        raise ModelLoadError(f"the {len(found)} servers {what} ({name}; {listed})")
