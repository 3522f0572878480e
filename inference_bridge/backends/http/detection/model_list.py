# SPDX-License-Identifier: Apache-2.0
"""Reads a server's list of models (`/v1/models`): the kind of server, and the capabilities of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..protocol.fields import number
from ..servers import BY_OWNER, SERVERS


@dataclass(frozen=True)
class Listed:
    """The information of an entry about its model.

    Attributes:
        capabilities: Those of `reported` that the model has.
        reported: The capabilities about which the entry gives information.
        options: Fields of GenerateConfig that the server supports for this model. None: the entry does not say.
        context: Number of tokens of its context window. 0: the entry does not say.
        slots: Number of operations that run at once. 0: the entry does not say.
    """

    capabilities: frozenset[str] = frozenset()
    reported: frozenset[str] = frozenset()
    options: frozenset[str] | None = None
    context: int = 0
    slots: int = 0


def server_of(models: Sequence[Mapping[str, Any]], headers: Sequence[str]) -> str:
    """Return the name of the server in SERVERS, from its list and the `Server` headers of its answers."""
    first: Mapping[str, Any] = models[0] if models else {}
    owner = first.get("owned_by")
    if owner is None and any(name.startswith("BaseHTTP/") for name in headers):
        return "mlx-lm"  # Its list of models may be empty, so its HTTP header identifies it.
    if owner is None and isinstance(first.get("supported_parameters"), list) and "pricing" in first:
        return "openrouter"
    if owner is not None and owner == first.get("id"):
        return "tgi"
    return BY_OWNER.get(str(owner), "")


def listed(server: str, entry: Mapping[str, Any]) -> Listed:
    """Read the entry of the chosen model."""
    parameters = entry.get("parameters")
    if isinstance(parameters, Mapping):  # TabbyAPI
        granted = {"images"} if parameters.get("use_vision") else set()
        return Listed(
            frozenset(granted),
            frozenset({"images"}),
            context=number(parameters, "max_seq_len"),
            slots=number(parameters, "max_batch_size"),
        )
    granted, reported = set(), set()
    architecture = entry.get("architecture")
    modalities = architecture.get("input_modalities") if isinstance(architecture, Mapping) else None
    if isinstance(modalities, list):  # OpenRouter, llama-swap
        reported |= {"images", "audios"}
        granted |= {kind for name, kind in _MODALITIES.items() if name in modalities}
    taken = entry.get("supported_parameters")
    options = None
    if server == "openrouter" and isinstance(taken, list):
        reported |= set(_PARAMETERS)
        granted |= {name for name, needed in _PARAMETERS.items() if needed <= set(taken)}
        names = {SERVERS[server].names.get(option, option): option for option in SERVERS[server].options}
        options = frozenset(option for name, option in names.items() if name in taken)
    elif isinstance(taken, list):
        reported |= {"tools"}
        granted |= {"tools"} & set(taken)
    context = number(entry, "context_length") or number(entry, "max_model_len")
    return Listed(frozenset(granted), frozenset(reported), options, context)


_MODALITIES = {"image": "images", "audio": "audios"}

_PARAMETERS = {
    "tools": {"tools", "tool_choice"},
    "json_schema": {"structured_outputs"},
    "reasoning": {"reasoning"},
    "logprobs": {"logprobs", "top_logprobs"},
}
"""The parameters of OpenRouter that each capability needs."""
