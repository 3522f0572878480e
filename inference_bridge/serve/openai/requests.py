# SPDX-License-Identifier: Apache-2.0
"""Reads OpenAI's requests, as options of the contract.

Source: https://platform.openai.com/docs/api-reference. Options that OpenAI does not have (top_k, min_p,
repeat_penalty, chat_template_kwargs) have the names that llama-server and vLLM use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...options import GenerateConfig
from ...types import Attachment, Message
from ..errors import RequestError
from ..fields import Fields, configured, numbers

IGNORED = frozenset({"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"})
"""Fields that clients always send and that change nothing here."""

MAX_CHOICES = 16

_NUMBERS = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
}
EFFORTS: dict[str, bool | str] = {"none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high"}
"""Values of reasoning_effort, and the contract's option `reasoning` for each."""


@dataclass(frozen=True)
class GenerationRequest:
    """The fields of a body that /v1/chat/completions and /v1/completions share.

    Attributes:
        model: The model's name.
        config: The options.
        choices: Number of answers for each prompt.
        stream: Whether the answers are streamed.
        include_usage: Whether the last event of a stream has the numbers of tokens.
        top_logprobs: Number of alternatives to show with each log probability. None: show no log probabilities.
    """

    model: str
    config: GenerateConfig
    choices: int
    stream: bool
    include_usage: bool
    top_logprobs: int | None


@dataclass(frozen=True)
class ChatRequest(GenerationRequest):
    """The fields of a body of /v1/chat/completions."""

    messages: tuple[Message, ...] = ()
    one_call: bool = False


@dataclass(frozen=True)
class TextRequest(GenerationRequest):
    """The fields of a body of /v1/completions."""

    prompts: tuple[str, ...] = ()


def chat_request(body: object) -> ChatRequest:
    """Read a body of /v1/chat/completions. Raise RequestError, which names the field, if a field is wrong."""
    fields = Fields(body, IGNORED)
    model = fields.require("model", str)
    messages = tuple(_message(item, index) for index, item in enumerate(fields.require("messages", list)))
    if not messages:
        raise fields.wrong("messages", "must have at least one message")
    options = _options(fields)
    most = fields.take("max_completion_tokens", int)
    if most is not None:
        options["max_tokens"] = most
    top = fields.take("top_logprobs", int)
    if fields.take("logprobs", bool, False):
        top = set_logprobs(fields, "top_logprobs", top or 0, options)
    elif top:
        raise fields.wrong("top_logprobs", "needs logprobs: true")
    else:
        top = None
    if tools := fields.take("tools", list):
        options["tools"] = [_tool(item, index) for index, item in enumerate(tools)]
    if (choice := fields.take_any("tool_choice")) is not None:
        options["tool_choice"] = _tool_choice(choice)
    parallel = fields.take("parallel_tool_calls", bool, True)
    options |= _response_format(fields.take_any("response_format"))
    if (effort := fields.take("reasoning_effort", str)) is not None:
        if effort not in EFFORTS:
            raise fields.wrong("reasoning_effort", f"must be one of {', '.join(EFFORTS)}")
        options["reasoning"] = EFFORTS[effort]
    if variables := fields.take("chat_template_kwargs", dict):
        options["template_options"] = variables
    fields.refuse("modalities", ["text"], why='must be ["text"]: the answer is text')
    asked = _asked(fields, model, options, top, "max_tokens" if most is None else "max_completion_tokens")
    fields.end()
    return ChatRequest(**vars(asked), messages=messages, one_call=not parallel)


def set_logprobs(fields: Fields, name: str, top: int, options: dict[str, Any]) -> int:
    """Set the contract's option `logprobs`. It is at least 1, because 0 turns log probabilities off.

    Args:
        fields: The fields of the body.
        name: The field that has the number.
        top: The number of alternatives that the client asks for, from 0.
        options: The options of the contract, in which `logprobs` is set.

    Returns:
        `top`, the number of alternatives to show.

    Raises:
        RequestError: The number is negative.
    """
    if top < 0:
        raise fields.wrong(name, "must be at least 0")
    options["logprobs"] = max(top, 1)
    return top


def text_request(body: object) -> TextRequest:
    """Read a body of /v1/completions. Raise RequestError, which names the field, if a field is wrong."""
    fields = Fields(body, IGNORED)
    model = fields.require("model", str)
    prompts = _texts(fields, "prompt")
    options = _options(fields)
    if (top := fields.take("logprobs", int)) is not None:
        set_logprobs(fields, "logprobs", top, options)
    fields.refuse("echo", False, why="is not supported")
    fields.refuse("suffix", "", why="is not supported")
    fields.refuse("best_of", 1, why="must be 1")
    asked = _asked(fields, model, options, top)
    fields.end()
    return TextRequest(**vars(asked), prompts=tuple(prompts))


@dataclass(frozen=True)
class EmbeddingsRequest:
    """The fields of a body of /v1/embeddings."""

    model: str
    texts: list[str]
    base64: bool


def embeddings_request(body: object) -> EmbeddingsRequest:
    """Read a body of /v1/embeddings. Raise RequestError, which names the field, if a field is wrong."""
    fields = Fields(body, IGNORED)
    model = fields.require("model", str)
    texts = _texts(fields, "input")
    form = fields.take("encoding_format", str, "float")
    if form not in ("float", "base64"):
        raise fields.wrong("encoding_format", 'must be "float" or "base64"')
    fields.refuse("dimensions", why="is not supported: the model decides the length of its vectors")
    fields.end()
    return EmbeddingsRequest(model, texts, form == "base64")


def _texts(fields: Fields, name: str) -> list[str]:
    """Read a field that is a string or an array of strings. Raise RequestError if it is anything else."""
    given = fields.take_any(name)
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(item, str) for item in texts):
        raise fields.wrong(name, "must be a string or an array of strings (token ids are not supported)")
    return texts


def _options(fields: Fields) -> dict[str, Any]:
    options = numbers(fields, _NUMBERS)
    if (most := fields.take("max_tokens", int)) is not None:
        options["max_tokens"] = most
    if (penalty := fields.take("repeat_penalty", float)) is not None:
        options["repeat_penalty"] = penalty
    stop = fields.take_any("stop")
    if stop is not None and stop != []:
        options["stop"] = stop
    fields.refuse("logit_bias", {}, why="is not supported")
    return options


def _asked(
    fields: Fields, model: str, options: dict[str, Any], top: int | None, max_tokens: str = "max_tokens"
) -> GenerationRequest:
    choices = fields.take("n", int, 1)
    if not 1 <= choices <= MAX_CHOICES:
        raise fields.wrong("n", f"must be from 1 to {MAX_CHOICES}")
    stream = fields.take("stream", bool, False)
    include_usage = False
    if (given := fields.take("stream_options", dict)) is not None:
        more = Fields(given, where="stream_options.")
        include_usage = more.take("include_usage", bool, False)
        more.take("include_obfuscation", bool)
        more.end()
        if not stream:
            raise fields.wrong("stream_options", "needs stream: true")
    return GenerationRequest(model, configured(options, max_tokens=max_tokens), choices, stream, include_usage, top)


def _message(value: object, index: int) -> Message:
    where = f"messages[{index}]"
    if not isinstance(value, dict):
        raise RequestError(400, f"{where} must be an object", param=where)
    content = value.get("content")
    for part in content if isinstance(content, list) else ():
        _check_part(part, where)
    value = {name: item for name, item in value.items() if name not in ("refusal", "annotations", "audio") or item}
    if value.get("role") == "developer":
        value["role"] = "system"
    try:
        return Message.from_dict(value)
    except (TypeError, ValueError) as error:
        raise RequestError(400, f"{where}: {error}", param=where) from None


def _check_part(part: object, where: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "image_url", "input_audio"):
        why = f"{where}: a content part must be text, image_url or input_audio, not {kind!r}"
        raise RequestError(400, why, param=where)
    if kind != "text" and isinstance(part, dict):
        attachment(part, where)


def attachment(part: dict[str, Any], where: str) -> Attachment:
    """Read a part that is an image or sound. Clients can't name files of this machine or URLs to download.

    Args:
        part: The part.
        where: The part's path in the body.

    Raises:
        RequestError: The part is wrong, or names a URL. The error names `where`.
    """
    if part.get("type") == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str) or not url.startswith("data:"):
            why = f"{where}: send the image itself, as a data: URL; this server fetches no URLs"
            raise RequestError(400, why, param=where)
    try:
        return Attachment.from_dict(part)
    except (TypeError, ValueError) as error:
        raise RequestError(400, f"{where}: {error}", param=where) from None


def _tool(value: object, index: int) -> dict[str, Any]:
    fields = Fields(value, where=f"tools[{index}].")
    if fields.take("type", str, "function") != "function":
        raise fields.wrong("type", 'must be "function"')
    tool = function_tool(Fields(fields.require("function", dict), where=f"tools[{index}].function."))
    fields.end()
    return tool


def function_tool(fields: Fields) -> dict[str, Any]:
    """Read all fields of a function in OpenAI's APIs. Return it as a tool of the contract."""
    tool = {
        "name": fields.require("name", str),
        "description": fields.take("description", str, ""),
        "parameters": fields.take("parameters", dict),
    }
    fields.take("strict", bool)  # arguments of a forced call always satisfy the schema
    fields.end()
    return tool


def _tool_choice(value: object) -> str:
    if not isinstance(value, dict):
        return tool_choice_name(value)
    fields = Fields(value, where="tool_choice.")
    if fields.require("type", str) != "function":
        raise fields.wrong("type", 'must be "function"')
    function = Fields(fields.require("function", dict), where="tool_choice.function.")
    name = function.require("name", str)
    function.end()
    fields.end()
    return name


def tool_choice_name(value: object) -> str:
    """Read a `tool_choice` that is a word. Raise RequestError if it is anything else."""
    if isinstance(value, str) and value in ("none", "auto", "required"):
        return value
    raise RequestError(400, 'tool_choice must be "none", "auto", "required" or an object', param="tool_choice")


def _response_format(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    fields = Fields(value, where="response_format.")
    kind = fields.require("type", str)
    if kind == "text":
        options: dict[str, Any] = {}
    elif kind == "json_object":
        options = {"json_schema": {"type": "object", "additionalProperties": True}}
    elif kind == "json_schema":
        given = Fields(fields.require("json_schema", dict), where="response_format.json_schema.")
        options = {"json_schema": given.require("schema", dict)}
        given.take("name", str)
        given.take("description", str)
        given.take("strict", bool)  # the schema always holds
        given.end()
    else:
        raise fields.wrong("type", 'must be "text", "json_object" or "json_schema"')
    fields.end()
    return options
