# SPDX-License-Identifier: Apache-2.0
"""What each kind of server takes and calls its options: one table, which the requests and docs/http.md are made from.

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
        title: Its name, for people.
        owners: What it writes as `owned_by` in its list of models.
        capabilities: What it can do, if the model can.
        options: The fields of GenerateConfig that it takes, beside those that capabilities stand for.
        names: What it calls options that are not OpenAI's.
        known: The capabilities that it has whatever the model.
        told: Those of which it tells whether the model has them. Any others are assumed.
        named_choice: How one tool is forced: "object", as OpenAI does it; "required" with no other tool sent; or
            "", not at all.
        forces: Whether a tool call can be forced.
        switches: Whether reasoning=True is a request it understands.
        ids: Whether it tells the ids of the tokens that it generates.
        counts: Whether it has an endpoint that tokenizes a text.
        listed: How many of the likeliest next tokens it lists, at most; 0: it tells the probability of any text.
        truncates: Whether it cuts texts to embed that are too long, when it is asked to.
        lists: Whether /completions takes a list of prompts and streams all answers together.
        endless_integers: Whether its grammars let an integer have any number of digits, so that bounds are sent.
        tried: How its behaviour is known: by tests that run it, or by answers recorded after its documentation.
    """

    title: str
    owners: frozenset[str] = frozenset()
    capabilities: frozenset[str] = _EVERY
    options: frozenset[str] = _OPENAI
    names: Mapping[str, str] = field(default_factory=dict)
    known: frozenset[str] = frozenset()
    told: frozenset[str] = frozenset()
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
"""More tokens than any vocabulary has."""

_PENALTY = {"repeat_penalty": "repetition_penalty"}
_SERVERS_OWN = frozenset({"json_schema", "logprobs"})

SERVERS: Mapping[str, Server] = {
    "llama.cpp": Server(
        "llama-server",
        frozenset({"llamacpp"}),
        frozenset({"chat", "tools", "json_schema", "logprobs"}),
        _MORE | {"template_options", "stop_tokens", "reasoning_budget", "choices"},
        names={"reasoning_budget": "reasoning_budget_tokens"},
        named_choice="required",  # it takes a named one for "auto"
        switches=True,
        ids=True,
        counts=True,
        listed=0,
        tried="run",
        known=_SERVERS_OWN,
        told=frozenset({"tools", "reasoning", "images", "audios", "infill"}),
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
        told=frozenset({"reasoning", "images", "audios"}),
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
    "mlx-lm": Server(  # it streams no log probabilities, and knows no schemas
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
    # It hands tools to the template, and reads no calls from the answer; it knows schemas in chats only,
    # and lets the model add white space without end.
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
        told=frozenset({"tools", "reasoning", "images", "infill"}),
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
    "tgi": Server(  # it makes a repetition penalty of presence_penalty, and ignores logit_bias
        "TGI",
        capabilities=frozenset({"chat", "tools", "json_schema", "logprobs", "images"}),
        options=frozenset({"temperature", "top_p", "frequency_penalty", "stop", "seed"}),
        known=_SERVERS_OWN,
    ),
    "koboldcpp": Server(  # it takes frequency_penalty for presence_penalty
        "KoboldCpp",
        frozenset({"koboldcpp"}),
        frozenset({"chat", "tools", "json_schema", "images"}),
        frozenset({"temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "stop", "seed"}),
        names=_PENALTY,
        forces=False,
        named_choice="",
    ),
    "tabbyapi": Server(  # it has no seed, and no tool_choice but "none"
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
        told=frozenset({"images"}),
    ),
    "openrouter": Server("OpenRouter", options=_MORE, names=_PENALTY, told=_EVERY, switches=True),
    "llama-swap": Server("llama-swap", frozenset({"llama-swap"}), told=frozenset({"tools", "images", "audios"})),
    "": Server("other servers"),
}
"""By the name that `ServerFacts.server` has."""

BY_OWNER: Mapping[str, str] = {owner: name for name, server in SERVERS.items() for owner in server.owners}
