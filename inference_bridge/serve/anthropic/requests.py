# SPDX-License-Identifier: Apache-2.0
"""Reads bodies of /v1/messages, as options of the contract.

Source: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...types import Attachment, Message, ToolCall
from ..errors import RequestError
from ..fields import Fields, configured, numbers
from ..operation import Conversation

IGNORED = frozenset({"metadata", "service_tier", "cache_control", "context_management"})
"""Fields that clients always send and that change nothing here."""

_NUMBERS = {"temperature": float, "top_p": float, "top_k": int}
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_HINTS = frozenset({"cache_control", "citations"})
"""Fields of a content block that change nothing: prefixes are always cached, and answers have no citations."""


@dataclass(frozen=True)
class MessagesRequest:
    """A request for an answer.

    Attributes:
        conversation: The conversation and its options.
        hides_thinking: Whether thinking blocks are sent without their text.
    """

    conversation: Conversation
    hides_thinking: bool = False


def messages_request(body: object, *, counting: bool = False) -> MessagesRequest:
    """Read a body of /v1/messages, or of /v1/messages/count_tokens.

    Args:
        body: The parsed JSON.
        counting: Whether the body is one of /v1/messages/count_tokens, which has no options for an answer.

    Raises:
        RequestError: A field is wrong. The error names it.
    """
    fields = Fields(body, IGNORED)
    model = fields.require("model", str)
    messages = [*_system(fields.take_any("system"), "system"), *_conversation(fields.require("messages", list))]
    options: dict[str, Any] = {}
    stream = False
    stops: tuple[str, ...] = ()
    if not counting:
        options = numbers(fields, _NUMBERS) | {"max_tokens": fields.require("max_tokens", int)}
        stream = fields.take("stream", bool, False)
        stops = _stops(fields)
    hides_thinking = _thinking(fields, options)
    _output_config(fields, options)
    one_call = _tools(fields, options)
    fields.end()
    if stops and ("json_schema" in options or options.get("tool_choice", "auto") not in ("auto", "none")):
        why = "cannot be used with output_config.format or a forced tool: they could cut the JSON short"
        raise fields.wrong("stop_sequences", why)
    config = configured(options)
    return MessagesRequest(Conversation(model, tuple(messages), config, stream, stops, one_call), hides_thinking)


def _stops(fields: Fields) -> tuple[str, ...]:
    stops = fields.take("stop_sequences", list, [])
    if not all(isinstance(stop, str) and stop.strip() for stop in stops):
        raise fields.wrong("stop_sequences", "must be an array of strings that are not blank")
    return tuple(stops)


def _thinking(fields: Fields, options: dict[str, Any]) -> bool:
    """Read `thinking`. Return whether its text is hidden.

    The budget changes nothing: in Anthropic's API too it is only a target, and max_tokens is the limit.
    """
    given = fields.take("thinking", dict)
    if given is None:
        return False
    thinking = Fields(given, where="thinking.")
    kind = thinking.require("type", str)
    if kind == "disabled":
        options["reasoning"] = False
    elif kind == "enabled":
        thinking.require("budget_tokens", int)
        options["reasoning"] = True
    elif kind != "adaptive":
        raise thinking.wrong("type", 'must be "enabled", "adaptive" or "disabled"')
    display = thinking.take("display", str, "summarized")
    if display not in ("summarized", "omitted"):
        raise thinking.wrong("display", 'must be "summarized" or "omitted"')
    thinking.end()
    return display == "omitted"


def _output_config(fields: Fields, options: dict[str, Any]) -> None:
    given = fields.take("output_config", dict)
    if given is None:
        return
    output = Fields(given, where="output_config.")
    effort = output.take("effort", str)
    if effort is not None and effort not in _EFFORTS:
        raise output.wrong("effort", f"must be one of {', '.join(_EFFORTS)}")
    if effort is not None and options.get("reasoning") is True:
        options["reasoning"] = _EFFORTS[effort]  # the effort has no effect without thinking
    if (given := output.take("format", dict)) is not None:
        form = Fields(given, where="output_config.format.")
        if form.require("type", str) != "json_schema":
            raise form.wrong("type", 'must be "json_schema"')
        options["json_schema"] = form.require("schema", dict)
        form.end()
    output.end()


def _tools(fields: Fields, options: dict[str, Any]) -> bool:
    """Read `tools` and `tool_choice`. Return whether the answer may have at most one call."""
    if tools := fields.take("tools", list):
        options["tools"] = [_tool(item, f"tools[{index}].") for index, item in enumerate(tools)]
    given = fields.take("tool_choice", dict)
    if given is None:
        return False
    choice = Fields(given, where="tool_choice.")
    kind = choice.require("type", str)
    if kind == "tool":
        options["tool_choice"] = choice.require("name", str)
    elif kind in ("auto", "none", "any"):
        options["tool_choice"] = "required" if kind == "any" else kind
    else:
        raise choice.wrong("type", 'must be "auto", "any", "tool" or "none"')
    one_call = choice.take("disable_parallel_tool_use", bool, False)
    choice.end()
    return one_call


def _tool(value: object, where: str) -> dict[str, Any]:
    fields = Fields(value, _HINTS, where=where)
    kind = fields.take("type", str, "custom")
    if kind != "custom":
        raise fields.wrong("type", f'must be "custom": this server has no {kind!r} tool')
    tool = {
        "name": fields.require("name", str),
        "description": fields.take("description", str, ""),
        "parameters": fields.require("input_schema", dict),
    }
    fields.take("strict", bool)  # arguments of a forced call always satisfy the schema
    fields.take("eager_input_streaming", bool)  # arguments are streamed as the model writes them
    fields.refuse("defer_loading", False, why="is not supported: every tool is shown to the model")
    fields.refuse("allowed_callers", ["direct"], why='must be ["direct"]')
    fields.refuse("input_examples", [], why="is not supported: put examples into the description")
    fields.end()
    return tool


# ---------------------------------------------------------------- messages


def _system(value: object, where: str) -> Iterable[Message]:
    if value is None:
        return
    text = _text(value, where)
    if text:
        yield Message("system", text)


def _conversation(values: list[object]) -> Iterable[Message]:
    if not values:
        raise RequestError(400, "messages must have at least one message", param="messages")
    role = ""
    for index, value in enumerate(values):
        fields = Fields(value, where=f"messages[{index}].")
        role = fields.require("role", str)
        content = fields.take_any("content")
        fields.end()
        where = f"messages[{index}].content"
        if role == "user":
            yield from _user(_blocks(content, where), where)
        elif role == "assistant":
            yield _assistant(_blocks(content, where), where)
        elif role == "system":
            yield from _system(content, where)
        else:
            raise fields.wrong("role", 'must be "user", "assistant" or "system"')
    if role == "assistant":
        why = "the last message must not be the assistant's: this server does not continue an answer"
        raise RequestError(400, why, param="messages")


def _blocks(content: object, where: str) -> list[tuple[str, Fields, str]]:
    """Return the blocks of a message's content, each as its type, its fields and its path."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise RequestError(400, f"{where} must be a string or an array of content blocks", param=where)
    blocks = []
    for index, item in enumerate(content):
        fields = Fields(item, _HINTS, where=f"{where}[{index}].")
        blocks.append((fields.require("type", str), fields, f"{where}[{index}]"))
    return blocks


def _user(blocks: list[tuple[str, Fields, str]], where: str) -> Iterable[Message]:
    """Yield a user's message. Each tool result in it becomes a separate message before it."""
    parts: list[str | Attachment] = []
    results: list[Message] = []
    for kind, fields, path in blocks:
        if kind == "tool_result":
            if parts:
                raise RequestError(400, f"{path}: tool results come before other content", param=where)
            results.append(_tool_result(fields, path))
        else:
            parts.append(_part(kind, fields, path))
    yield from results
    if parts or not results:
        yield Message("user", _joined(parts))


def _tool_result(fields: Fields, path: str) -> Message:
    """Return a tool's result. The contract has no field for a failure, so the text begins with "Error: "."""
    call = fields.require("tool_use_id", str)
    content = fields.take_any("content")
    failed = fields.take("is_error", bool, False)
    fields.end()
    parts = [_part(*block) for block in _blocks("" if content is None else content, f"{path}.content")]
    return Message("tool", _joined(["Error: ", *parts] if failed else parts), tool_call_id=call)


def _assistant(blocks: list[tuple[str, Fields, str]], where: str) -> Message:
    text, reasoning, calls = "", "", []
    for kind, fields, path in blocks:
        if kind == "text":
            text += fields.require("text", str)
        elif kind == "thinking":
            reasoning += fields.require("thinking", str)
            fields.take("signature", str)
        elif kind == "tool_use":
            calls.append(
                ToolCall(fields.require("id", str), fields.require("name", str), fields.require("input", dict))
            )
            fields.take("caller", dict)
        else:
            why = f"{path}: an assistant's content must be text, thinking or tool_use, not {kind!r}"
            raise RequestError(400, why, param=where)
        fields.end()
    return Message("assistant", text, calls, reasoning=reasoning or None)


def _part(kind: str, fields: Fields, path: str) -> str | Attachment:
    """Return a block as a part of a message. Clients can't name files of this machine or URLs to download."""
    if kind == "text":
        part: str | Attachment = fields.require("text", str)
    elif kind == "image":
        source = Fields(fields.require("source", dict), where=f"{path}.source.")
        if source.require("type", str) != "base64":
            raise source.wrong("type", 'must be "base64": this server fetches no URLs and keeps no files')
        data = {
            "type": "attachment",
            "mime_type": source.require("media_type", str),
            "data": source.require("data", str),
        }
        source.end()
        try:
            part = Attachment.from_dict(data)
        except ValueError as error:
            raise RequestError(400, f"{path}.source: {error}", param=f"{path}.source") from None
        if not part.type.startswith("image/"):
            raise source.wrong("media_type", "must be the type of an image, such as image/png")
    elif kind == "document":
        source = Fields(fields.require("source", dict), where=f"{path}.source.")
        if source.require("type", str) != "text":
            raise source.wrong("type", 'must be "text": this server reads no PDF files')
        source.take("media_type", str)
        part = source.require("data", str)
        source.end()
        about = [fields.take("title", str, ""), fields.take("context", str, "")]
        part = "\n".join([*filter(None, about), part])
    else:
        raise RequestError(400, f"{path}: content of type {kind!r} is not supported here", param=path)
    fields.end()
    return part


def _joined(parts: list[str | Attachment]) -> str | list[str | Attachment]:
    """Join parts that are all text to one string, which every chat template supports."""
    if all(isinstance(part, str) for part in parts):
        return "".join(map(str, parts))
    return parts


def _text(content: object, where: str) -> str:
    texts = []
    for kind, fields, path in _blocks(content, where):
        if kind != "text":
            raise RequestError(400, f"{path} must be text", param=path)
        texts.append(fields.require("text", str))
        fields.end()
    return "\n\n".join(texts)
