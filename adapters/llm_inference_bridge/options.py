# SPDX-License-Identifier: Apache-2.0
"""The options of a prompt in llm: `-o NAME VALUE`, or keyword arguments of `model.prompt`.

They are fields of GenerateConfig, and the fields of LoadConfig that a command may safely choose (`LOAD_OPTIONS`).
Options take precedence over the configuration file. A prompt with other load options loads the model a second time.
The fields json_schema and tools are not options, because llm has --schema and -T for them. The fields logprobs and
return_logits are not options, because llm can't show these results.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, ClassVar

import click
import llm
from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from inference_bridge import registry
from inference_bridge.authoring import LOAD_FIELDS, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from .catalog import Offer

LOAD_OPTIONS = frozenset(
    {"context_length", "deterministic", "gpu_layers", "keep_alive", "kv_cache_type", "prefix_cache_size", "threads"}
)
"""The fields of LoadConfig that are options."""

_OWN = frozenset({"drop_oldest"})
"""Options that only this plugin has."""

_IN_LLM = {"json_schema": "--schema", "response_format": "--schema", "tools": "-T or --functions", "system": "-s"}
"""Fields for which llm has its own option, with that option."""


class Options(llm.Model.Options):
    _refused: ClassVar[frozenset[str]] = frozenset()
    """The options that this model's backend does not support."""
    _backend: ClassVar[str] = ""
    _can_reason: ClassVar[Callable[[], bool] | None] = None
    """Loads the model and returns whether it can reason. None: the command does not save options for later prompts."""

    max_tokens: int | None = Field(
        None,
        description="Maximum number of tokens to generate; -1: until the answer or the context ends. "
        "Default: 4096, with a warning if that cuts off an answer",
    )
    temperature: float | None = Field(
        None,
        description="0 always takes the most likely token; higher values sample more freely. "
        "Default: the sampling that the model's files recommend, else 0.8 with top_k 40, top_p 0.95, min_p 0.05",
    )
    top_k: int | None = Field(None, description="Sample only from the k most likely tokens; 0 is off")
    top_p: float | None = Field(
        None, description="Sample only from the most likely tokens that together have this probability; 0 is off"
    )
    min_p: float | None = Field(
        None, description="Sample only from tokens at least this fraction as likely as the most likely one; 0 is off"
    )
    repeat_penalty: float | None = Field(
        None, description="Values above 1 make tokens that occurred recently less likely; 0 and 1 are off"
    )
    presence_penalty: float | None = Field(
        None, description="Subtracted from the logit of each token that occurred recently"
    )
    frequency_penalty: float | None = Field(
        None, description="Subtracted from the logit of a token for each time that it occurred recently"
    )
    stop: str | list[str] | None = Field(
        None,
        description="Text that ends the answer and is not shown; several texts as a JSON list: "
        r'["\n", "User:"]',
    )
    stop_tokens: list[int] | None = Field(None, description="Ids of tokens that end the answer, as a JSON list: [2, 7]")
    seed: int | None = Field(None, description="Makes sampling repeatable")
    regex: str | None = Field(None, description="The whole answer matches this regular expression")
    choices: list[str] | None = Field(
        None, description='The answer is one of these texts, as a JSON list: ["yes", "no"]'
    )
    grammar: str | None = Field(None, description="The answer follows this grammar, in Lark, from its rule `start`")
    logit_bias: dict[int, float] | None = Field(
        None, description='Numbers to add to the logits of tokens, as a JSON object by token id: {"42": -100}'
    )
    min_tokens: int | None = Field(None, description="Minimum number of tokens before the answer can end")
    schema_in_prompt: bool | None = Field(
        None, description="Whether the model is shown the schema of --schema. Default: true"
    )
    reasoning_budget: int | None = Field(
        None, description="Maximum number of tokens of reasoning; then the answer follows"
    )
    tool_choice: str | None = Field(
        None,
        description="auto, none, required, or the name of the tool that the model must call first; "
        "after the result of a tool, the model decides by itself",
    )
    reasoning: bool | str | None = Field(
        None, description="Whether the model reasons before it answers: on, off, low, medium or high"
    )
    template_options: dict[str, Any] | None = Field(
        None, description="Variables for the model's chat template, as a JSON object"
    )
    timeout: float | None = Field(None, description="Maximum seconds for the answer, without loading the model")
    context_length: int | None = Field(
        None,
        description="When loading: maximum number of tokens of a conversation; 0: the model's own, if memory allows",
    )
    gpu_layers: int | None = Field(None, description="When loading: layers to put on the GPU; -1: all of them")
    threads: int | None = Field(
        None,
        description="When loading: number of CPU threads; 0: one for each physical core that other programs leave free",
    )
    deterministic: bool | None = Field(
        None,
        description="When loading: whether a result is independent of other running operations, which is slower",
    )
    kv_cache_type: str | None = Field(
        None, description="When loading: the type of the numbers in the KV cache: f16, q8_0 or q4_0"
    )
    drop_oldest: bool | None = Field(
        None,
        description="true: leave out the oldest turns of a conversation that is too long for the context; "
        "false: report an error. Default: false",
    )
    keep_alive: float | str | None = Field(
        None,
        description="When loading: how long the model stays loaded for the next command, such as 90s or 5m; "
        "0: it does not stay loaded",
    )
    prefix_cache_size: int | str | None = Field(
        None,
        description="When loading: maximum size on disk of the prefix cache, such as 500MiB. With it, later commands "
        "need not evaluate the same prompt again; 0: no cache. Default: 2GiB",
    )

    @model_validator(mode="before")
    @classmethod
    def _suggest(cls, values: Any) -> Any:
        """Refuse unknown names, and suggest the option with the most similar name."""
        unknown = [name for name in values if name not in cls.model_fields] if isinstance(values, dict) else []
        if unknown:
            errors = [
                _error(_unknown(name, did_you_mean(name, cls.model_fields)), name, values[name]) for name in unknown
            ]
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return values

    @field_validator("*", mode="wrap")
    @classmethod
    def _check(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """Parse and check the value of an option.

        An option in `_READ` is parsed by its function, any other option by pydantic. GenerateConfig or LoadConfig then
        checks the value.

        Raises:
            PydanticCustomError: The model or its backend does not support the option, or the value is not valid.
        """
        name = info.field_name or ""
        if name not in _READ:
            value = handler(value)
        elif isinstance(value, str):
            value = _READ[name](value)
        from inference_bridge import GenerateConfig, LoadConfig  # here: a prompt without options does not need them

        if name in cls._refused and value not in _WITHOUT_EFFECT.get(name, (None,)):
            reason = {"backend": cls._backend}
            raise PydanticCustomError("option", "the backend {backend} does not support this option", reason)
        if name == "reasoning" and cls._can_reason and value not in (None, False) and not cls._can_reason():
            raise PydanticCustomError("option", "the model does not reason before it answers")
        if name in _OWN:
            return value
        try:
            (LoadConfig if name in LOAD_OPTIONS else GenerateConfig)(**{name: value})
        except (TypeError, ValueError) as error:
            raise PydanticCustomError("option", "{reason}", {"reason": str(error)}) from None
        return value


_WITHOUT_EFFECT = {"reasoning": (None, False), "tool_choice": (None, "auto", "none")}
"""Values that are accepted even if the backend does not support the option, because they request nothing of it."""


def options_of(offer: Offer, can_reason: Callable[[], bool]) -> type[Options]:
    """Return the class of a model's options. It refuses options that the model's backend does not support.

    Args:
        offer: The model.
        can_reason: Loads the model and returns whether it can reason. Called only if llm saves the options.
    """
    kind = offer.kind
    backend = registry.get(kind.backend)
    refused = {name for name in LOAD_OPTIONS if backend.load_options is not None and name not in backend.load_options}
    if "reasoning" not in kind.capabilities:
        refused.add("reasoning")
    if not kind.tools:
        refused.add("tool_choice")
    options = _refusing(kind.backend, frozenset(refused))
    if not _is_saved():
        return options
    return type("Options", (options,), {"_can_reason": staticmethod(can_reason), "__module__": __name__})


def _is_saved() -> bool:
    """Return whether the running command saves the options: `llm --save NAME` or `llm models options set`."""
    context = click.get_current_context(silent=True)
    if context is None:
        return False
    within = context.parent.info_name if context.parent is not None else None
    return bool(context.params.get("save")) or (context.info_name, within) == ("set", "options")


@functools.cache
def _refusing(backend: str, refused: frozenset[str]) -> type[Options]:
    if not refused:
        return Options
    return type("Options", (Options,), {"_refused": refused, "_backend": backend, "__module__": __name__})


def _unknown(name: str, near: str) -> str:
    """Return the error for an unknown name: how to set it elsewhere, or which option has a similar name (`near`)."""
    if name in _IN_LLM:
        return f"This is not an option of a prompt: use {_IN_LLM[name]}"
    if name in LOAD_FIELDS and not near:
        return f"This is a load option. Set it for a named model: llm bridge add NAME MODEL -l {name} VALUE"
    return f"Unknown option{near}"


def _error(reason: str, name: str, value: Any) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError("option", "{r}", {"r": reason}), loc=(name,), input=value)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _stop(text: str) -> Any:
    value = _json_or_text(text)
    return value if isinstance(value, list) else text


def _stop_tokens(text: str) -> Any:
    value = _json_or_text(text)
    return [value] if isinstance(value, int) else value


def _reasoning(text: str) -> Any:
    return {"on": True, "true": True, "off": False, "false": False}.get(text.lower(), text.lower())


_READ = {"stop": _stop, "stop_tokens": _stop_tokens, "reasoning": _reasoning}
_READ |= dict.fromkeys(("template_options", "choices", "logit_bias"), _json_or_text)
"""Functions that parse the text of an option on the command line, for options that pydantic does not parse."""
