# SPDX-License-Identifier: Apache-2.0
"""Reads bodies of /v1/responses, as options of the contract.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...options import GenerateConfig
from ...types import Attachment, Message, ToolCall
from ..errors import RequestError
from ..fields import Fields, configured, numbers
from ..openai.requests import EFFORTS, IGNORED, attachment, function_tool, set_logprobs, tool_choice_name

_IGNORED = (IGNORED - {"metadata", "store"}) | {"prompt_cache_retention", "client_metadata"}

_NUMBERS = {"temperature": float, "top_p": float, "top_k": int, "min_p": float, "seed": int}

_INCLUDES = ("reasoning.encrypted_content", "message.output_text.logprobs")
"""Values of `include`. Reasoning is not encrypted: the content of a reasoning item is its text."""

_HINTS = frozenset({"id", "status", "phase"})
"""Fields of an item that a client sends back, and that change nothing."""


@dataclass(frozen=True)
class ResponseRequest:
    """A request for a response.

    Attributes:
        model: The model's name.
        instructions: The system message. It applies to this response only.
        messages: The conversation, or the messages after the previous response.
        previous: The id of the response that this one continues.
        config: The options.
        stream: Whether the response is streamed.
        store: Whether the response is kept, so that another response can continue it.
        one_call: Whether the response has at most one function call.
        top_logprobs: Number of alternatives to show with each log probability.
        shown: Fields that the response shows as they were sent.
    """

    model: str
    instructions: str
    messages: tuple[Message, ...]
    previous: str | None
    config: GenerateConfig
    stream: bool
    store: bool
    one_call: bool
    top_logprobs: int = 0
    shown: dict[str, Any] = field(default_factory=dict)


def response_request(body: object) -> ResponseRequest:
    """Read a body of /v1/responses. Raise RequestError, which names the field, if a field is wrong."""
    fields = Fields(body, _IGNORED)
    raw: dict[str, Any] = dict(body) if isinstance(body, dict) else {}
    model = fields.require("model", str)
    instructions = fields.take("instructions", str, "")
    previous = fields.take("previous_response_id", str)
    messages = _input(fields.take_any("input"))
    if not messages and previous is None:
        raise fields.wrong("input", "must be a string, or an array of at least one item")
    if messages and messages[-1].role == "assistant":
        raise fields.wrong("input", "must not end with the assistant's message: this server does not continue one")
    options: dict[str, Any] = numbers(fields, _NUMBERS)
    if (most := fields.take("max_output_tokens", int)) is not None:
        options["max_tokens"] = most
    top = _logprobs(fields, options)
    _reasoning(fields, options)
    _text(fields, options)
    _tools(fields, options)
    if variables := fields.take("chat_template_kwargs", dict):
        options["template_options"] = variables
    parallel = fields.take("parallel_tool_calls", bool, True)
    stream = fields.take("stream", bool, False)
    store = fields.take("store", bool, True)
    if (given := fields.take("stream_options", dict)) is not None:
        more = Fields(given, where="stream_options.")
        more.take("include_obfuscation", bool)
        more.end()
    _metadata(fields)
    fields.refuse("background", False, why="is not supported")
    fields.refuse("truncation", "disabled", why='must be "disabled": no part of a conversation is left out')
    fields.take("max_tool_calls", int)  # limits only calls that a server runs itself, and this server runs none
    fields.end()
    defaults: dict[str, Any] = {
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": None,
        "store": True,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": None,
        "top_p": None,
        "truncation": "disabled",
    }
    shown = {name: raw[name] if raw.get(name) is not None else value for name, value in defaults.items()}
    config = configured(options, max_tokens="max_output_tokens")
    return ResponseRequest(model, instructions, messages, previous, config, stream, store, not parallel, top, shown)


def _metadata(fields: Fields) -> None:
    for name, value in fields.take("metadata", dict, {}).items():
        if not isinstance(value, str):
            raise fields.wrong(f"metadata.{name}", "must be a string")


def _logprobs(fields: Fields, options: dict[str, Any]) -> int:
    include = fields.take("include", list, [])
    for name in include:
        if name not in _INCLUDES:
            raise fields.wrong("include", f"may have only {' and '.join(_INCLUDES)}")
    top = fields.take("top_logprobs", int)
    if top is not None or "message.output_text.logprobs" in include:
        return set_logprobs(fields, "top_logprobs", top or 0, options)
    return 0


def _reasoning(fields: Fields, options: dict[str, Any]) -> None:
    given = fields.take("reasoning", dict)
    if given is None:
        return
    reasoning = Fields(given, where="reasoning.")
    if (effort := reasoning.take("effort", str)) is not None:
        if effort not in EFFORTS:
            raise reasoning.wrong("effort", f"must be one of {', '.join(EFFORTS)}")
        options["reasoning"] = EFFORTS[effort]
    for name in ("summary", "generate_summary"):  # the response has the reasoning itself
        reasoning.take(name, str)
    reasoning.end()


def _text(fields: Fields, options: dict[str, Any]) -> None:
    given = fields.take("text", dict)
    if given is None:
        return
    text = Fields(given, where="text.")
    text.refuse("verbosity", "medium", why='must be "medium": ask for it in the prompt')
    if (given := text.take("format", dict)) is not None:
        form = Fields(given, where="text.format.")
        kind = form.require("type", str)
        if kind == "json_schema":
            options["json_schema"] = form.require("schema", dict)
            form.take("name", str)
            form.take("description", str)
            form.take("strict", bool)  # the schema always holds
        elif kind == "json_object":
            options["json_schema"] = {"type": "object", "additionalProperties": True}
        elif kind != "text":
            raise form.wrong("type", 'must be "text", "json_object" or "json_schema"')
        form.end()
    text.end()


def _tools(fields: Fields, options: dict[str, Any]) -> None:
    if tools := fields.take("tools", list):
        options["tools"] = [_tool(item, f"tools[{index}].") for index, item in enumerate(tools)]
    choice = fields.take_any("tool_choice")
    if isinstance(choice, dict):
        given = Fields(choice, where="tool_choice.")
        if given.require("type", str) != "function":
            raise given.wrong("type", 'must be "function"')
        options["tool_choice"] = given.require("name", str)
        given.end()
    elif choice is not None:
        options["tool_choice"] = tool_choice_name(choice)


def _tool(value: object, where: str) -> dict[str, Any]:
    fields = Fields(value, where=where)
    kind = fields.require("type", str)
    if kind != "function":
        raise fields.wrong("type", f'must be "function": this server has no {kind!r} tool')
    return function_tool(fields)


# ---------------------------------------------------------------- input


def _input(value: object) -> tuple[Message, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (Message("user", value),)
    if not isinstance(value, list):
        raise RequestError(400, "input must be a string or an array of items", param="input")
    turns = _Turns()
    for index, item in enumerate(value):
        turns.add(Fields(item, _HINTS, where=f"input[{index}]."), f"input[{index}]")
    return turns.messages()


class _Turns:
    """Joins items into messages: an assistant's reasoning, text and calls become one message."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._clear()

    def _clear(self) -> None:
        self._open = False
        self._answer = ""
        self._reasoning = ""
        self._calls: list[ToolCall] = []

    def messages(self) -> tuple[Message, ...]:
        """End the assistant's message if it is open, and return all messages."""
        if self._open:
            self._messages.append(
                Message("assistant", self._answer, tuple(self._calls), reasoning=self._reasoning or None)
            )
            self._clear()
        return tuple(self._messages)

    def add(self, fields: Fields, where: str) -> None:
        kind = fields.take("type", str, "message")
        if kind == "message":
            self._message(fields, where)
        elif kind == "function_call":
            self._open = True
            call = {"name": fields.require("name", str), "arguments": fields.require("arguments", str)}
            try:
                self._calls.append(ToolCall.from_dict({"id": fields.require("call_id", str), "function": call}))
            except ValueError as error:
                raise RequestError(400, f"{where}: {error}", param=where) from None
        elif kind == "function_call_output":
            self.messages()
            call_id = fields.require("call_id", str)
            output = _content(fields.take_any("output"), f"{where}.output")
            self._messages.append(Message("tool", output, tool_call_id=call_id))
        elif kind == "reasoning":
            self._open = True
            parts = [*fields.take("summary", list, []), *fields.take("content", list, [])]
            self._reasoning += "".join(str(_text_of(part, where)) for part in parts)
            fields.refuse("encrypted_content", "", why="can only be read by the server that encrypted it")
        else:
            raise fields.wrong(
                "type", f"must be message, function_call, function_call_output or reasoning, not {kind!r}"
            )
        fields.end()

    def _message(self, fields: Fields, where: str) -> None:
        role = fields.require("role", str)
        content = _content(fields.take_any("content"), f"{where}.content")
        if role == "assistant":
            if not isinstance(content, str):
                raise fields.wrong("content", "of an assistant must be text")
            self._open = True
            self._answer += content
        elif role in ("user", "system", "developer"):
            self.messages()
            self._messages.append(Message("system" if role == "developer" else role, content))
        else:
            raise fields.wrong("role", "must be user, assistant, system or developer")


def _content(value: object, where: str) -> str | list[str | Attachment]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RequestError(400, f"{where} must be a string or an array of content parts", param=where)
    parts = [_part(part, f"{where}[{index}]") for index, part in enumerate(value)]
    if all(isinstance(part, str) for part in parts):
        return "".join(map(str, parts))
    return parts


def _part(value: object, where: str) -> str | Attachment:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(value, dict) and kind == "input_image":
        return attachment({"type": "image_url", "image_url": {"url": value.get("image_url")}}, where)
    if isinstance(value, dict) and kind == "input_audio":
        return attachment(value, where)
    return _text_of(value, where)


def _text_of(value: object, where: str) -> str:
    kinds = {"input_text", "output_text", "text", "summary_text", "reasoning_text"}
    if not isinstance(value, dict) or value.get("type") not in kinds or not isinstance(value.get("text"), str):
        why = f"{where} must be text (input_text, output_text), input_image or input_audio"
        raise RequestError(400, why, param=where)
    text: str = value["text"]
    return text
