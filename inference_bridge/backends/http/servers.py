# SPDX-License-Identifier: Apache-2.0
"""The table of servers: which options each kind supports, and their names. docs/http.md is generated from it.

Sources: the servers' own source code and documentation. vLLM 0.32 (entrypoints/openai), SGLang
(openai_compatible docs), mlx-lm (server.py), llama-cpp-python (server/types.py), Ollama (docs/api, api/types.go),
LM Studio (developer docs, "OpenAI compatibility"), TGI (router/src/lib.rs), KoboldCpp (transform_genparams),
TabbyAPI (common/sampling.py), llama-swap (internal/server), OpenRouter (API reference, "Parameters").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

_OPENAI = frozenset({"temperature", "top_p", "presence_penalty", "frequency_penalty", "stop", "seed", "logit_bias"})
_MORE = _OPENAI | {"top_k", "min_p", "repeat_penalty"}

_EVERY = frozenset({"chat", "tools", "json_schema", "logprobs", "reasoning", "images", "audios"})


@dataclass(frozen=True)
class Server:
    """A kind of server.

    Attributes:
        title: The name that is shown to people.
        owners: The values of `owned_by` in its list of models.
        capabilities: The capabilities that it supports, if the model has them.
        options: The fields of GenerateConfig that it supports, in addition to those that capabilities imply.
        names: Its names of options, if they differ from those of GenerateConfig.
        known: The capabilities that it has with every model.
        reported: The capabilities about which it says whether the model has them. All others are assumed.
        named_choice: How a named tool is forced: "object", as in OpenAI's API; "required", where only this tool is
            sent; "", not at all.
        forces: Whether a tool call can be forced.
        switches: Whether it supports reasoning=True.
        ids: Whether it returns the ids of the tokens that it generates.
        counts: Whether it has an endpoint that tokenizes a text.
        listed: Maximum number of most likely next tokens that it lists. 0: it returns the probability of any text.
        truncates: Whether it can truncate texts to embed that are too long.
        lists: Whether /completions accepts a list of prompts and streams all answers together.
        endless_integers: Whether its grammars allow any number of digits in an integer. Then bounds are sent.
        tried: How its behaviour was tested: "run", by tests that run it; "run by hand"; "recorded", by answers written
            according to its documentation; or "not run".
    """

    title: str
    owners: frozenset[str] = frozenset()
    capabilities: frozenset[str] = _EVERY
    options: frozenset[str] = _OPENAI
    names: Mapping[str, str] = field(default_factory=dict)
    known: frozenset[str] = frozenset()
    reported: frozenset[str] = frozenset()
    named_choice: str = "object"
    forces: bool = True
    switches: bool = False
    ids: bool = False
    counts: bool = False
    listed: int = 20
    truncates: bool = False
    lists: bool = False
    endless_integers: bool = False
    tried: Literal["run", "run by hand", "recorded", "not run"] = "recorded"


WHOLE = 1 << 20
"""A number larger than any vocabulary."""

_PENALTY = {"repeat_penalty": "repetition_penalty"}
_SERVERS_OWN = frozenset({"json_schema", "logprobs"})

SERVERS: Mapping[str, Server] = {
    "llama.cpp": Server(
        "llama-server",
        frozenset({"llamacpp"}),
        frozenset({"chat", "tools", "json_schema", "logprobs"}),
        _MORE | {"template_options", "stop_tokens", "reasoning_budget", "choices"},
        names={"reasoning_budget": "reasoning_budget_tokens"},
        named_choice="required",  # it reads a named choice as "auto"
        switches=True,
        ids=True,
        counts=True,
        listed=0,
        tried="run",
        known=_SERVERS_OWN,
        reported=frozenset({"tools", "reasoning", "images", "audios", "infill"}),
    ),
    "vllm": Server(
        "vLLM",
        frozenset({"vllm"}),
        options=_MORE | {"template_options", "stop_tokens", "regex", "choices", "min_tokens", "reasoning_budget"},
        names=_PENALTY | {"reasoning_budget": "thinking_token_budget"},
        switches=True,
        ids=True,
        counts=True,
        listed=0,
        truncates=True,
        lists=True,
        endless_integers=True,
        tried="run by hand",
        known=_SERVERS_OWN | {"tools"},
        reported=frozenset({"reasoning", "images", "audios"}),
    ),
    "sglang": Server(
        "SGLang",
        frozenset({"sglang"}),
        options=_MORE | {"template_options", "stop_tokens", "min_tokens"},
        names=_PENALTY,
        switches=True,
        counts=True,
        endless_integers=True,
        tried="not run",
        known=_SERVERS_OWN,
    ),
    "mlx-lm": Server(  # it does not stream log probabilities, and does not support schemas
        "mlx_lm.server",
        capabilities=frozenset({"chat", "tools", "reasoning"}),
        options=_MORE | {"template_options"},
        names=_PENALTY,
        named_choice="",
        forces=False,
        switches=True,
        listed=10,
        tried="run",
        known=frozenset({"tools", "reasoning"}),
    ),
    # It passes tools to the template, but does not read calls from the answer. It supports schemas only in chats, and
    # there the model may add white space without end.
    "llama-cpp-python": Server(
        "llama_cpp.server",
        frozenset({"me"}),
        frozenset({"chat", "logprobs"}),
        _MORE,
        counts=True,
        listed=WHOLE,
        tried="run",
        known=frozenset({"logprobs"}),
    ),
    "ollama": Server(
        "Ollama",
        capabilities=_EVERY - {"audios"},
        options=_MORE - {"logit_bias"},
        named_choice="",
        forces=False,
        switches=True,
        known=_SERVERS_OWN,
        reported=frozenset({"tools", "reasoning", "images", "infill"}),
        truncates=True,
    ),
    "lm-studio": Server(
        "LM Studio",
        frozenset({"organization_owner"}),
        frozenset({"chat", "tools", "json_schema", "reasoning", "images"}),
        _OPENAI | {"top_k", "repeat_penalty"},
        named_choice="required",  # it refuses an object as tool_choice
        known=frozenset({"json_schema"}),
    ),
    "tgi": Server(  # it uses presence_penalty as a repetition penalty, and ignores logit_bias
        "TGI",
        capabilities=frozenset({"chat", "tools", "json_schema", "logprobs", "images"}),
        options=frozenset({"temperature", "top_p", "frequency_penalty", "stop", "seed"}),
        known=_SERVERS_OWN,
    ),
    "koboldcpp": Server(  # it reads frequency_penalty as presence_penalty
        "KoboldCpp",
        frozenset({"koboldcpp"}),
        frozenset({"chat", "tools", "json_schema", "images"}),
        frozenset({"temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "stop", "seed"}),
        names=_PENALTY,
        forces=False,
        named_choice="",
    ),
    "tabbyapi": Server(  # it has no seed, and its only tool_choice is "none"
        "TabbyAPI",
        frozenset({"tabbyAPI"}),
        frozenset({"chat", "tools", "json_schema", "logprobs", "reasoning", "images"}),
        _MORE - {"seed"} | {"template_options", "stop_tokens", "regex", "min_tokens", "reasoning_budget"},
        names=_PENALTY | {"reasoning_budget": "reasoning_budget_tokens"},
        forces=False,
        named_choice="",
        switches=True,
        counts=True,
        known=_SERVERS_OWN,
        reported=frozenset({"images"}),
    ),
    "openrouter": Server("OpenRouter", options=_MORE, names=_PENALTY, reported=_EVERY, switches=True),
    "llama-swap": Server("llama-swap", frozenset({"llama-swap"}), reported=frozenset({"tools", "images", "audios"})),
    "": Server("other servers"),
}
"""The kinds of servers, by the name that is in `ServerFacts.server`."""

BY_OWNER: Mapping[str, str] = {owner: name for name, server in SERVERS.items() for owner in server.owners}
