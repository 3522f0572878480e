# SPDX-License-Identifier: Apache-2.0
"""The options of a generation (`GenerateConfig`) and of loading a model (`LoadConfig`).

A value is checked when it is set. So a wrong value raises TypeError or ValueError at the call, never in the middle of
a generation.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict

from ._suggest import did_you_mean
from .types import Tool

ReasoningEffort = Literal["low", "medium", "high"]


class GenerateOptions(TypedDict, total=False):
    """The fields of `GenerateConfig` as keyword arguments. None leaves the field of the config unchanged."""

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repeat_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    stop: str | Sequence[str] | None
    stop_tokens: Sequence[int] | None
    seed: int | None
    logprobs: int | None
    return_logits: bool | None
    json_schema: Mapping[str, Any] | None
    regex: str | None
    choices: Sequence[str] | None
    grammar: str | None
    schema_in_prompt: bool | None
    logit_bias: Mapping[int, float] | None
    min_tokens: int | None
    reasoning_budget: int | None
    n: int | None
    tools: Sequence[Tool | Mapping[str, Any]] | None
    tool_choice: str | None
    reasoning: bool | ReasoningEffort | None
    template_options: Mapping[str, Any] | None
    timeout: float | None


@dataclass(frozen=True, slots=True, repr=False)
class GenerateConfig:
    """How to generate. None means that the field was not set; the model's default applies.

    Attributes:
        max_tokens: Maximum number of tokens to generate; -1: until the text ends or the context window is full.
        temperature: 0 selects the most likely token; above 0 samples.
        top_k: Sample only from the k most likely tokens; 0: off.
        top_p: Sample only from the most likely tokens whose probabilities add up to p; 0: off.
        min_p: Sample only from tokens at least this many times as likely as the most likely one; 0: off.
        repeat_penalty: Above 1 makes the last 64 tokens less likely; 0 and 1: off.
        presence_penalty: Subtracted once from the logit of a recent token.
        frequency_penalty: Subtracted from the logit of a recent token for each of its occurrences.
        stop: Strings that end the text; they are not part of it. Not allowed with json_schema, regex, choices, grammar
            or a forced tool call: a stop string could cut their text short.
        stop_tokens: Ids of tokens that end the text. Not allowed where `stop` is not.
        seed: Makes sampling repeatable.
        logprobs: n: each token has its log probability and those of the n most likely tokens.
        return_logits: Only in classify: return the logits of the last position.
        json_schema: The text is JSON that satisfies this schema.
        regex: The whole text matches this regular expression.
        choices: The text is one of these strings.
        grammar: The text follows this grammar, in the Lark syntax of llguidance, from its rule `start`. Only one of
            json_schema, regex, choices and grammar can be set; the last three exclude a forced tool call.
        schema_in_prompt: Whether chat() shows the json_schema to the model, as it shows tools (True).
        logit_bias: Added to the logit of a token before a token is chosen, by token id; -100 practically excludes the
            token. It does not change logprobs.
        min_tokens: Minimum number of tokens before an end token or a stop token is chosen. A stop string still ends
            the text. Not allowed with json_schema, regex, choices, grammar or a forced tool call.
        reasoning_budget: Maximum number of tokens of reasoning. Then the reasoning is ended and the answer follows.
        n: Number of answers to each prompt of batch_generate, stream_batch and chat_batch, one after the other (1).
            With a seed, each answer has its own seed, computed from it.
        tools: Tools that the model may call.
        tool_choice: "auto", "none", "required" (any tool), or the name of a tool. The last two force a tool call.
        reasoning: False: off; True: on; "low", "medium", "high": the amount.
        template_options: Variables for the chat template.
        timeout: Seconds for the whole operation, including the wait for a slot.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | Sequence[str] | None = None
    stop_tokens: Sequence[int] | None = None
    seed: int | None = None
    logprobs: int | None = None
    return_logits: bool | None = None
    json_schema: Mapping[str, Any] | None = None
    regex: str | None = None
    choices: Sequence[str] | None = None
    grammar: str | None = None
    schema_in_prompt: bool | None = None
    logit_bias: Mapping[int, float] | None = None
    min_tokens: int | None = None
    reasoning_budget: int | None = None
    n: int | None = None
    tools: Sequence[Tool | Mapping[str, Any]] | None = None
    tool_choice: str | None = None
    reasoning: bool | ReasoningEffort | None = None
    template_options: Mapping[str, Any] | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        for name, check in _GENERATE_CHECKS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check(name, value))
        constraints = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(constraints) > 1:
            raise ValueError(f"{' and '.join(constraints)} exclude each other: set one of them")
        if constraints and constraints != ["json_schema"] and is_forced(self.tool_choice):
            raise ValueError(f"{constraints[0]} and tool_choice={self.tool_choice!r} exclude each other")
        self._check_min_tokens(constraints)

    def _check_min_tokens(self, constraints: Sequence[str]) -> None:
        if not self.min_tokens:
            return
        forced = [f"tool_choice={self.tool_choice!r}"] if is_forced(self.tool_choice) else []
        for other in [*constraints, *forced]:
            raise ValueError(f"min_tokens and {other} exclude each other: {other} says where the text ends")
        if 0 < (self.max_tokens or 0) < self.min_tokens:
            raise ValueError(f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}")

    def set_fields(self) -> dict[str, Any]:
        """Return the fields that were set, by name."""
        return {name: getattr(self, name) for name in GENERATE_FIELDS if getattr(self, name) is not None}

    def with_options(self, options: Mapping[str, Any]) -> GenerateConfig:
        """Return a copy in which `options` replace fields. Raises TypeError for an unknown name."""
        _check_names(options, GENERATE_FIELDS, "generation option", LOAD_FIELDS, "load option")
        given = {name: value for name, value in options.items() if value is not None}
        return replace(self, **given) if given else self

    def over(self, base: GenerateConfig) -> GenerateConfig:
        """Return a copy in which the fields that were not set have the values of `base`."""
        return replace(base, **self.set_fields())

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.set_fields().items())
        return f"GenerateConfig({inside})"


CONSTRAINTS = ("json_schema", "regex", "choices", "grammar")
"""The fields that constrain the text."""

SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p"),
    *("repeat_penalty", "presence_penalty", "frequency_penalty"),
)
"""The numbers that decide how a token is chosen from the model's probabilities."""

GENERATE_FIELDS = tuple(f.name for f in fields(GenerateConfig))

DEFAULTS: GenerateConfig
"""The defaults of the contract, on every engine: max_tokens is 256, and temperature is 0 (greedy). Every other field is
off. A wrapped model of `llm` or LangChain gets no defaults."""


class LoadOptions(TypedDict, total=False):
    """The fields of `LoadConfig` as keyword arguments. None leaves the field of the config unchanged."""

    context_length: int | None
    gpu_layers: int | None
    parallel_slots: int | None
    threads: int | None
    batch_size: int | None
    chat_template: str | None
    adapters: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
    draft_model: str | os.PathLike[str] | None
    draft_ngram: int | None
    draft_tokens: int | None
    mmproj: str | os.PathLike[str] | None
    device: str | None
    split_mode: Literal["layer", "row", "none"] | None
    tensor_split: Sequence[float] | None
    kv_cache_type: Literal["f16", "q8_0", "q4_0"] | None
    memory_limit: int | None
    deterministic: bool | None
    vet: bool | None
    prefix_cache_size: int | str | None
    keep_alive: float | str | None
    model: str | None
    api_key: str | None
    headers: Mapping[str, str] | None
    connect_timeout: float | None
    first_token_timeout: float | None
    ca_bundle: str | os.PathLike[str] | None
    defaults: Literal["contract", "server"] | None
    extra: Mapping[str, Any] | Sequence[str] | None


@dataclass(frozen=True, slots=True, repr=False)
class LoadConfig:
    """How to load a model. A backend raises UnsupportedError for an option that it does not support.

    None means that the field was not set: the value in the configuration file applies, or else the default. The value
    in brackets is the default; set it to override the configuration file. `load_model` passes only the fields that
    differ from their defaults to a backend; the others are None.

    Attributes:
        context_length: Number of tokens that one operation may use (0: as the model states, if memory allows).
        gpu_layers: Number of layers on the GPU (-1: all).
        parallel_slots: Number of operations that decode at once (0: the backend's default, 4 in process).
        threads: Number of CPU threads (0: physical cores, within CPU affinity and the container's quota; in process,
            minus the cores that other programs keep busy).
        batch_size: Number of tokens of a prompt that are evaluated at once (0: the engine's default).
        chat_template: A Jinja template that replaces the model's chat template ("": the model's).
        adapters: Paths of LoRA adapters ((): none).
        draft_model: A small model for speculative decoding ("": none).
        draft_ngram: Speculative decoding without a model, for text that repeats its prompt: number of last tokens that
            are searched in the earlier text, to guess the next ones (0: off).
        draft_tokens: Number of tokens that are guessed at once in speculative decoding (0: the engine's default).
        mmproj: The projector of a model that takes images or sound ("": the projector in the model's directory).
        device: The device to use, as the engine names it; several are separated by commas ("": the engine's choice).
        split_mode: How several GPUs share a model: by "layer", by "row", or "none", which uses one GPU ("layer").
        tensor_split: The share of each GPU, as relative weights such as (3, 1) ((): by free memory).
        kv_cache_type: The type of the numbers in the KV cache: "f16", or "q8_0" and "q4_0", which take about a half and
            a quarter of the memory, with some loss of quality ("f16").
        memory_limit: Maximum number of bytes of the weights and the context together (0: no limit).
        deterministic: True: on a CPU, the results of a sequence do not depend on concurrent sequences, to the last bit,
            at some cost in speed. Otherwise they may differ within the engine's rounding (False).
        prefix_cache_size: Maximum size of the prefix cache on disk, in bytes; also a text such as "2GiB". A later
            process evaluates only the part of a prompt that is not in the cache. The files contain the prompts; only
            this user can read them (0: nothing is stored on disk).
        vet: Whether a file is first loaded in a child process, to test it, before this process loads it (True).
        keep_alive: Seconds for which a separate process keeps the model loaded after its last use by any program; also
            a text such as "5m" (0: this program loads it for itself).
        model: The name of the model on a server ("": the server's only model).
        api_key: The API key of a server.
        headers: Additional headers for a server ({}: none).
        ca_bundle: The certificates to trust ("": the system's).
        connect_timeout: Seconds to wait for a connection to a server.
        first_token_timeout: Seconds to wait for a server's first token, and for each later one.
        defaults: Over http, if a call does not set max_tokens or temperature: "contract" sends 256 and 0, as on every
            backend; "server" sends nothing, so the server's defaults apply ("contract").
        extra: Passed to the engine unchanged: a mapping, or a list of arguments for a server ({}: nothing).
    """

    context_length: int | None = None
    gpu_layers: int | None = None
    parallel_slots: int | None = None
    threads: int | None = None
    batch_size: int | None = None
    chat_template: str | None = None
    adapters: Sequence[str] | None = None
    draft_model: str | None = None
    draft_ngram: int | None = None
    draft_tokens: int | None = None
    mmproj: str | None = None
    device: str | None = None
    split_mode: Literal["layer", "row", "none"] | None = None
    tensor_split: Sequence[float] | None = None
    kv_cache_type: Literal["f16", "q8_0", "q4_0"] | None = None
    memory_limit: int | None = None
    deterministic: bool | None = None
    vet: bool | None = None
    prefix_cache_size: int | None = None
    keep_alive: float | None = None
    model: str | None = None
    api_key: str | None = None
    headers: Mapping[str, str] | None = None
    connect_timeout: float | None = None
    first_token_timeout: float | None = None
    ca_bundle: str | None = None
    defaults: Literal["contract", "server"] | None = None
    extra: Mapping[str, Any] | Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name, check in _LOAD_CHECKS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check(name, value))

    def set_fields(self) -> dict[str, Any]:
        """Return the fields that were set, by name."""
        return {name: getattr(self, name) for name in LOAD_FIELDS if getattr(self, name) is not None}

    def with_options(self, options: Mapping[str, Any]) -> LoadConfig:
        """Return a copy in which `options` replace fields. Raises TypeError for an unknown name."""
        _check_names(options, LOAD_FIELDS, "load option", GENERATE_FIELDS, "generation option")
        given = {name: value for name, value in options.items() if value is not None}
        return replace(self, **given) if given else self

    def over(self, base: LoadConfig) -> LoadConfig:
        """Return a copy in which the fields that were not set have the values of `base`."""
        return replace(base, **self.set_fields())

    def effective(self) -> LoadConfig:
        """Return the config for a backend: fields that have their default value are None, as if they were not set."""
        return LoadConfig(**{name: value for name, value in self.set_fields().items() if not _is_default(name, value)})

    def __repr__(self) -> str:
        shown = self.set_fields()
        if "api_key" in shown:
            shown["api_key"] = "***"
        if "headers" in shown:  # any header may contain a credential
            shown["headers"] = dict.fromkeys(shown["headers"], "***")
        return f"LoadConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


LOAD_FIELDS = tuple(f.name for f in fields(LoadConfig))


_NONZERO = {"gpu_layers": -1, "split_mode": "layer", "kv_cache_type": "f16", "vet": True, "defaults": "contract"}
"""The defaults that are neither zero nor empty."""


def _is_default(name: str, value: Any) -> bool:
    return bool(value == _NONZERO[name]) if name in _NONZERO else not value


# ---------------------------------------------------------------- checks

Check = Callable[[str, Any], Any]


def is_forced(tool_choice: str | None) -> bool:
    """Return whether this `tool_choice` forces a tool call."""
    return tool_choice not in (None, "auto", "none")


def _check_names(options: Iterable[str], known: Sequence[str], what: str, others: Sequence[str], other: str) -> None:
    """Raise TypeError for an unknown name. `others`: the names of options of the other kind, called `other`."""
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known)
            if name in others:
                hint = f": it is a {other}"
            elif not hint and (near := did_you_mean(name, others)):
                hint = f"{near.rstrip('?')}, a {other}?"
            raise TypeError(f"unknown {what} {name!r}{hint}")


def _number(
    kind: type, low: float | None = None, high: float | None = None, *, also: float | None = None, above: bool = False
) -> Check:
    """Return a check for an int or finite float within [low, high], or equal to `also`. `above`: `low` is excluded."""

    def check(name: str, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
            raise TypeError(f"{name} must be {'an int' if kind is int else 'a number'}, not {value!r}")
        try:
            value = kind(value)
        except OverflowError:
            raise ValueError(f"{name} must be finite, but this number is too large for a float") from None
        if kind is float and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, not {value!r}")
        if value == also:
            return value
        if low is not None and (value < low or (above and value == low)):
            raise ValueError(f"{name} must be {'above' if above else 'at least'} {low}, not {value!r}" + _or(also))
        if high is not None and value > high:
            raise ValueError(f"{name} must be at most {high}, not {value!r}" + _or(also))
        return value

    return check


def _or(also: float | None) -> str:
    return "" if also is None else f" (or {also}, which has a special meaning: see the documentation)"


_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _duration(name: str, value: Any) -> float:
    """Return seconds, given as a number or as a text such as "90", "5m" or "1.5h"."""
    if not isinstance(value, str):
        return float(_number(float, 0)(name, value))
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([smhd]?)\s*", value)
    if found is None:
        raise ValueError(f"{name} must be a time such as 300, '90s', '5m' or '1h', not {value!r}")
    return float(found[1]) * _SECONDS[found[2]]


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def _bytes(name: str, value: Any) -> int:
    """Return bytes, given as a number or as a text such as "4096", "512MiB" or "2GB". Units are powers of 1,024."""
    if not isinstance(value, str):
        return int(_number(int, 0)(name, value))
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([kmgt]?)(?:i?b)?\s*", value, re.IGNORECASE)
    if found is None:
        raise ValueError(f"{name} must be a size such as 1000000000, '512MiB' or '2GiB', not {value!r}")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {value!r}")
    if not value:
        raise ValueError(f"{name} must not be empty")
    return value


def _choice(name: str, value: Any) -> str:
    """Check a text that may be "", the default."""
    return "" if value == "" else _text(name, value)


def _file(name: str, value: Any) -> str:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, not {value!r}")
    return _text(name, os.fspath(value))


def _path(name: str, value: Any) -> str:
    """Check a path that may be "", the default."""
    return "" if value == "" else _file(name, value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must be a mapping with str keys, not {value!r}")
    return dict(value)


def _headers(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(x, str) for pair in value.items() for x in pair):
        raise TypeError(f"{name} must map str to str")  # the value is not shown: it may hold a credential
    return dict(value)


def _secret(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str")  # the value is not shown
    if not value:
        raise ValueError(f"{name} must not be empty")
    return value


def _extra(name: str, value: Any) -> dict[str, Any] | tuple[str, ...]:
    if isinstance(value, Mapping):
        return _mapping(name, value)
    arguments: tuple[str, ...] = _sequence(_text)(name, value)
    return arguments


def _sequence(check: Check, *, single: type | tuple[type, ...] = ()) -> Check:
    """Return a check for a sequence of items. An item of the type `single` is read as a sequence of one item."""

    def check_all(name: str, value: Any) -> tuple[Any, ...]:
        if single and isinstance(value, single):
            value = (value,)
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise TypeError(f"{name} must be a sequence, not {value!r}")
        return tuple(check(name, item) for item in value)

    return check_all


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts: tuple[str, ...] = _sequence(_text)(name, value)
    if not texts:
        raise ValueError(f"{name} must not be empty")
    return texts


def _bias(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must map token ids to numbers, not {value!r}")
    id_of, number = _number(int, 0, _INT32_MAX), _number(float)
    return {id_of(f"a token of {name}", _int_of(key)): number(f"{name}[{key!r}]", bias) for key, bias in value.items()}


def _int_of(key: Any) -> Any:
    """Return a token id. In JSON, keys are always text, so a text of digits becomes an int."""
    return int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10 else key


def _tool(name: str, value: Any) -> Tool:
    if isinstance(value, Tool):
        return value
    if isinstance(value, Mapping):
        return Tool.from_dict(value)
    raise TypeError(f"{name} must be Tool objects or mappings, not {value!r}")


def _reasoning(name: str, value: Any) -> Any:
    if isinstance(value, bool) or value in ("low", "medium", "high"):
        return value
    raise ValueError(f"{name} must be True, False, 'low', 'medium' or 'high', not {value!r}")


def _one_of(*names: str) -> Check:
    def check(name: str, value: Any) -> str:
        if value not in names:
            raise ValueError(f"{name} must be {', '.join(map(repr, names[:-1]))} or {names[-1]!r}, not {value!r}")
        return str(value)

    return check


def _shares(name: str, value: Any) -> tuple[float, ...]:
    shares: tuple[float, ...] = _sequence(_number(float, 0))(name, value)
    if shares and not any(shares):
        raise ValueError(f"{name} must hold a number above 0, not {value!r}")
    return shares


_INT32_MAX = 2**31 - 1  # engines store these numbers in 32 bits

_LARGEST = 1e6
"""Maximum of a temperature or penalty. Engines calculate in float32: beyond its range a logit becomes infinite or NaN,
and then a token that the grammar forbids could be chosen."""

_GENERATE_CHECKS: dict[str, Check] = {
    "max_tokens": _number(int, 1, _INT32_MAX, also=-1),
    "temperature": _number(float, 0, _LARGEST),
    "top_k": _number(int, 0, _INT32_MAX),
    "top_p": _number(float, 0, 1),
    "min_p": _number(float, 0, 1),
    "repeat_penalty": _number(float, 0, _LARGEST),
    "presence_penalty": _number(float, -_LARGEST, _LARGEST),
    "frequency_penalty": _number(float, -_LARGEST, _LARGEST),
    "stop": _sequence(_text, single=str),
    "stop_tokens": _sequence(_number(int, 0, _INT32_MAX), single=int),
    "seed": _number(int, 0, 2**64 - 1),
    "logprobs": _number(int, 0, _INT32_MAX),
    "return_logits": _flag,
    "json_schema": _mapping,
    "regex": _text,
    "choices": _texts,
    "grammar": _text,
    "logit_bias": _bias,
    "schema_in_prompt": _flag,
    "min_tokens": _number(int, 0, _INT32_MAX),
    "reasoning_budget": _number(int, 0, _INT32_MAX),
    "n": _number(int, 1, 128),
    "tools": _sequence(_tool),
    "tool_choice": _text,
    "reasoning": _reasoning,
    "template_options": _mapping,
    "timeout": _number(float, 0, above=True),
}

_LOAD_CHECKS: dict[str, Check] = {
    "context_length": _number(int, 0, _INT32_MAX),
    "gpu_layers": _number(int, -1, _INT32_MAX),
    "parallel_slots": _number(int, 0, 256),
    "threads": _number(int, 0, 1024),
    "batch_size": _number(int, 0, _INT32_MAX),
    "chat_template": _choice,
    "adapters": _sequence(_file, single=(str, os.PathLike)),
    "draft_model": _path,
    "draft_ngram": _number(int, 0, 1024),
    "draft_tokens": _number(int, 0, 1024),
    "mmproj": _path,
    "device": _choice,
    "split_mode": _one_of("layer", "row", "none"),
    "tensor_split": _shares,
    "kv_cache_type": _one_of("f16", "q8_0", "q4_0"),
    "memory_limit": _number(int, 0),
    "deterministic": _flag,
    "vet": _flag,
    "prefix_cache_size": _bytes,
    "keep_alive": _duration,
    "model": _choice,
    "api_key": _secret,
    "headers": _headers,
    "connect_timeout": _number(float, 0, above=True),
    "first_token_timeout": _number(float, 0, above=True),
    "ca_bundle": _path,
    "defaults": _one_of("contract", "server"),
    "extra": _extra,
}

DEFAULTS = GenerateConfig(max_tokens=256, temperature=0.0)
