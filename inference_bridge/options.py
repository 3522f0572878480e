# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a generation (`GenerateConfig`) and of loading (`LoadConfig`).

A value is checked when it is set, so a wrong one fails at the call with TypeError or
ValueError, never in the middle of a generation.
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
    """`GenerateConfig`'s fields as keyword arguments. None leaves a field as the config has it."""

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
    """How to generate. A field that is None was not set, and the model's default holds.

    Attributes:
        max_tokens: Maximum number of tokens to generate; -1: until the end of the text or of the context.
        temperature: 0 takes the most likely token; above 0 samples.
        top_k: Sample only from the k most likely tokens; 0: off.
        top_p: Sample only from the most likely tokens whose probabilities add up to p; 0: off.
        min_p: Sample only from tokens at least this many times as likely as the most likely one; 0: off.
        repeat_penalty: Above 1 makes the last 64 tokens less likely; 0 and 1: off.
        presence_penalty: Subtracted once from the logit of a recent token.
        frequency_penalty: Subtracted from the logit of a recent token for each of its occurrences.
        stop: Strings that end the text; they are not part of it. Not with json_schema or a forced tool call, which end
            where their JSON does: a stop string could cut it short.
        stop_tokens: Ids of tokens that end the text.
        seed: Makes sampling repeatable.
        logprobs: n: each token has its log probability and those of the n most likely tokens.
        return_logits: In classify: return the logits of the last position.
        json_schema: The text is JSON that satisfies this schema.
        regex: The whole text matches this regular expression.
        choices: The text is one of these strings.
        grammar: The text follows this grammar, in Lark as llguidance reads it, from its rule `start`. Only one of
            json_schema, regex, choices and grammar can be set, and the last three not with a forced tool call.
        schema_in_prompt: Whether chat() shows the json_schema to the model, as it shows tools (True).
        logit_bias: Added to the logit of a token before one is chosen, by token id; -100 excludes a token in practice.
            It does not change logprobs.
        min_tokens: No end token and no stop token is chosen before this many tokens; a stop string ends the text all
            the same. Not with json_schema and the like, nor with a forced tool call, which end where their text is
            complete.
        reasoning_budget: Maximum number of tokens of reasoning; then the reasoning is ended and the answer follows.
        n: Number of answers that batch_generate and chat_batch give for each prompt, one after the other (1). With a
            seed, each has a seed made from it.
        tools: Tools that the model may call.
        tool_choice: "auto", "none", "required", or the name of a tool.
        reasoning: False: off; True: on; "low", "medium", "high": how much.
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
        """The fields that were set, by name."""
        return {name: getattr(self, name) for name in GENERATE_FIELDS if getattr(self, name) is not None}

    def with_options(self, options: Mapping[str, Any]) -> GenerateConfig:
        """This config with `options` over it. TypeError for a name that is no field."""
        _check_names(options, GENERATE_FIELDS, "generation option", LOAD_FIELDS, "load option")
        given = {name: value for name, value in options.items() if value is not None}
        return replace(self, **given) if given else self

    def over(self, base: GenerateConfig) -> GenerateConfig:
        """This config, with `base` where a field was not set."""
        return replace(base, **self.set_fields())

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.set_fields().items())
        return f"GenerateConfig({inside})"


CONSTRAINTS = ("json_schema", "regex", "choices", "grammar")
"""The fields that say what the text must be."""

SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p"),
    *("repeat_penalty", "presence_penalty", "frequency_penalty"),
)
"""The numbers that decide how a token is chosen from the model's probabilities."""

GENERATE_FIELDS = tuple(f.name for f in fields(GenerateConfig))

DEFAULTS: GenerateConfig
"""The contract's own values, which hold on every engine where nobody sets a field: 256 tokens, the likeliest ones.
Every field that is not in it is off. A model of `llm` or LangChain that is wrapped gets none of them."""


class LoadOptions(TypedDict, total=False):
    """`LoadConfig`'s fields as keyword arguments. None leaves a field as the config has it."""

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
    """How to load a model. A backend refuses what it can't honour.

    A field that is None was not set: the configuration file's value holds, else the default. The value in brackets is
    the default, written out: it undoes what the configuration file says. `load_model` hands a backend the fields that
    ask for something else than the default, and None for the others.

    Attributes:
        context_length: Tokens that one operation may use (0: the model's own, as far as memory allows).
        gpu_layers: Layers on the GPU (-1: all).
        parallel_slots: Operations that decode at once (0: the backend's default, 4 in process).
        threads: CPU threads (0: physical cores, within CPU affinity and the container's quota; in process, less those
            that other programs keep busy).
        batch_size: Tokens of a prompt that are evaluated at once (0: the engine's default).
        chat_template: A Jinja template in place of the model's own ("": the model's own).
        adapters: Paths of LoRA adapters ((): none).
        draft_model: A small model for speculative decoding ("": none).
        draft_ngram: Speculative decoding without a model, for text that repeats its prompt: the number of last tokens
            that are looked up in the text before them, to guess what follows (0: off).
        draft_tokens: Tokens that are guessed at once in speculative decoding (0: the engine's default).
        mmproj: The projector of a model that takes images or sound ("": the one beside the model).
        device: The device to use, as the engine names it; several are separated by commas ("": the engine's choice).
        split_mode: How several GPUs share a model: by "layer", by "row", or "none", which uses one GPU ("layer").
        tensor_split: The share of each GPU, as numbers that add up to the whole, such as (3, 1) ((): by free memory).
        kv_cache_type: The type of the numbers in the KV cache: "f16", or "q8_0" and "q4_0", which take about a half and
            a quarter of the memory, at some cost in quality ("f16").
        memory_limit: Bytes that the weights and the context may take together (0: no limit).
        deterministic: Whether, on a CPU, the results of a sequence are to the last bit those that it would have alone,
            at some cost in speed; else they depend on concurrent sequences within the engine's rounding (False).
        prefix_cache_size: Maximum size of the prefix cache on disk, in bytes; also a text such as "2GiB". A later
            process evaluates only the part of a prompt that is not in it. The files contain the prompts, for this user
            alone (0: nothing is stored on disk).
        vet: Whether a file is loaded once in a child process before it is loaded in this one (True).
        keep_alive: Seconds for which the model stays loaded, in a process of its own, after its last use by any
            program; also a text such as "5m" (0: only this program loads it).
        model: The name of the model on a server ("": the server's only one).
        api_key: The API key of a server.
        headers: Additional headers for a server ({}: none).
        ca_bundle: The certificates to trust ("": the system's).
        connect_timeout: Seconds to wait for a connection to a server.
        first_token_timeout: Seconds to wait for a server's first token, and for each later one.
        defaults: Over http, where a call sets no max_tokens or temperature: "contract" sends 256 and 0, as on every
            backend; "server" sends nothing and leaves both to the server ("contract").
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
        """The fields that were set, by name."""
        return {name: getattr(self, name) for name in LOAD_FIELDS if getattr(self, name) is not None}

    def with_options(self, options: Mapping[str, Any]) -> LoadConfig:
        """This config with `options` over it. TypeError for a name that is no field."""
        _check_names(options, LOAD_FIELDS, "load option", GENERATE_FIELDS, "generation option")
        given = {name: value for name, value in options.items() if value is not None}
        return replace(self, **given) if given else self

    def over(self, base: LoadConfig) -> LoadConfig:
        """This config, with `base` where a field was not set."""
        return replace(base, **self.set_fields())

    def effective(self) -> LoadConfig:
        """This config as a backend gets it: a field that asks for the default is None, like one that was not set."""
        return LoadConfig(**{name: value for name, value in self.set_fields().items() if not _is_default(name, value)})

    def __repr__(self) -> str:
        shown = self.set_fields()
        if "api_key" in shown:
            shown["api_key"] = "***"
        if "headers" in shown:  # any of them may carry a credential
            shown["headers"] = dict.fromkeys(shown["headers"], "***")
        return f"LoadConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


LOAD_FIELDS = tuple(f.name for f in fields(LoadConfig))


_WRITTEN = {"gpu_layers": -1, "split_mode": "layer", "kv_cache_type": "f16", "vet": True, "defaults": "contract"}
"""The defaults that are not zero or empty, written out."""


def _is_default(name: str, value: Any) -> bool:
    return bool(value == _WRITTEN[name]) if name in _WRITTEN else not value


# ---------------------------------------------------------------- checks

Check = Callable[[str, Any], Any]


def is_forced(tool_choice: str | None) -> bool:
    """Whether a tool must be called."""
    return tool_choice not in (None, "auto", "none")


def _check_names(options: Iterable[str], known: Sequence[str], what: str, others: Sequence[str], other: str) -> None:
    """Raise TypeError for a name that is not known. `others`: the names of options of the other kind, `other`."""
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
    """A check for an int or finite float within [low, high] (or `also`); `above`: low itself is out."""

    def check(name: str, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
            raise TypeError(f"{name} must be {'an int' if kind is int else 'a number'}, not {value!r}")
        try:
            value = kind(value)
        except OverflowError:
            raise ValueError(f"{name} must be finite, and this is more than a float holds") from None
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
    return "" if also is None else f" ({also} has a meaning of its own: see the documentation)"


_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _duration(name: str, value: Any) -> float:
    """Seconds: a number, or a text such as "90", "5m" and "1.5h"."""
    if not isinstance(value, str):
        return float(_number(float, 0)(name, value))
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([smhd]?)\s*", value)
    if found is None:
        raise ValueError(f"{name} must be a time such as 300, '90s', '5m' or '1h', not {value!r}")
    return float(found[1]) * _SECONDS[found[2]]


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def _bytes(name: str, value: Any) -> int:
    """Bytes: a number, or a text such as "4096", "512MiB" and "2GiB"; a unit is a power of 1,024 in each spelling."""
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
    """A text of which "" is the default."""
    return "" if value == "" else _text(name, value)


def _file(name: str, value: Any) -> str:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, not {value!r}")
    return _text(name, os.fspath(value))


def _path(name: str, value: Any) -> str:
    """A path of which "" is the default."""
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
    """A check for a sequence of items; a `single` item stands for a sequence of one."""

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
    """A token id as JSON has it, whose keys are text."""
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


_INT32_MAX = 2**31 - 1  # what engines count in

_LARGEST = 1e6
"""Of a temperature or penalty. Engines calculate in float32: beyond its range a logit becomes infinite or NaN, and a
token is chosen that a grammar forbids."""

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
