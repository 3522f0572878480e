# SPDX-License-Identifier: Apache-2.0
"""Convert LangChain messages to `Message`s, and `Message`s to LangChain messages."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from inference_bridge import Attachment, Message, ToolCall
from inference_bridge.authoring import read_file

_ROLES: tuple[tuple[type[BaseMessage], str], ...] = (
    (HumanMessage, "user"),
    (AIMessage, "assistant"),
    (SystemMessage, "system"),
    (ToolMessage, "tool"),
    (FunctionMessage, "tool"),
)

_MEDIA = {"image": "image/*", "audio": "audio/*", "video": "video/*", "file": ""}
"""Types of content blocks that are attachments, with the MIME type of a block that does not state one."""


# ---------------------------------------------------------------- from LangChain


def to_messages(messages: Iterable[BaseMessage]) -> list[Message]:
    """Convert a LangChain conversation for `TextModel.chat`.

    Args:
        messages: LangChain messages. Content may be in LangChain's standard blocks, OpenAI's or Anthropic's.

    Raises:
        ValueError: Only the provider can read a block, such as the id of an uploaded file; or a message has no role in
            a conversation with a model.
    """
    return [_message(message) for message in messages]


def _message(message: BaseMessage) -> Message:
    role = message.role if isinstance(message, ChatMessage) else _role(message)
    call_id = message.tool_call_id if isinstance(message, ToolMessage) else None
    if isinstance(message.content, str) and not isinstance(message, AIMessage):
        return Message(role, message.content, tool_call_id=call_id, name=message.name)

    content: list[str | Attachment] = []
    reasoning: list[str] = []
    calls = _tool_calls(message) if isinstance(message, AIMessage) else []
    for block in cast("list[dict[str, Any]]", message.content_blocks):
        kind, block = _unpacked(block)
        if kind == "text":
            content.append(block["text"])
        elif kind == "text-plain":
            content.append(_document(block))
        elif kind in _MEDIA or kind == "image_url":
            content.append(_attachment(kind, block))
        elif kind in ("reasoning", "thinking"):
            reasoning.append(block.get(kind) or "")
        elif kind in ("tool_call", "tool_use"):
            if all(call.id != block.get("id") for call in calls):
                arguments = block["args"] if kind == "tool_call" else block["input"]
                calls.append(ToolCall(block.get("id") or "", block["name"], dict(arguments)))
        elif kind not in ("tool_call_chunk", "invalid_tool_call"):  # these are read from the message's own fields
            raise ValueError(f"a message has a content block of type {kind!r}, which only its provider can read")
    if isinstance(message, AIMessage):
        # A call that was cut off is shown to the model as text, as the model wrote it.
        content += [f'{{"name": "{call["name"]}", "arguments": {call["args"]}' for call in message.invalid_tool_calls]
    return Message(role, _joined(content), calls, call_id, message.name, "".join(reasoning) or None)


def _role(message: BaseMessage) -> str:
    role = next((role for kind, role in _ROLES if isinstance(message, kind)), None)
    if role is None:
        raise ValueError(f"a {type(message).__name__} can't be part of a conversation with a model")
    return role


def _tool_calls(message: AIMessage) -> list[ToolCall]:
    calls = [ToolCall(call["id"] or "", call["name"], call["args"]) for call in message.tool_calls]
    legacy = message.additional_kwargs.get("function_call")
    if not calls and isinstance(legacy, Mapping):
        calls.append(ToolCall.from_dict(legacy))
    return calls


def _unpacked(block: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the type of a block, and the block. LangChain wraps unknown blocks in a block of type non_standard."""
    if block["type"] == "non_standard":
        block = block["value"]
    return str(block.get("type")), block


def _document(block: Mapping[str, Any]) -> str:
    if "text" in block:
        text = str(block["text"])
    elif "base64" in block:
        text = base64.b64decode(block["base64"]).decode("utf-8")
    else:
        raise ValueError("a text-plain block needs text or base64: URLs and uploaded files are not fetched")
    return "\n".join(part for part in (block.get("title"), block.get("context"), text) if part)


def _attachment(kind: str, block: Mapping[str, Any]) -> Attachment:
    if kind == "image_url":
        return Attachment.from_dict(block)
    fields = {"type": "attachment", "mime_type": block.get("mime_type") or _MEDIA[kind]}
    if "base64" in block:
        return Attachment.from_dict(fields | {"data": block["base64"]})
    url = block.get("url")
    if not isinstance(url, str):
        raise ValueError(f"a block of type {kind!r} needs base64 or url: only its provider can read an uploaded file")
    if url[:5].lower() == "data:":
        return Attachment.from_dict({"type": "image_url", "image_url": url})
    return Attachment.from_dict(fields | {"url": url})  # blocks are not trusted, so they can't name a local file


def _joined(content: Sequence[str | Attachment]) -> str | Sequence[str | Attachment]:
    """Return content without attachments as one str, which every chat template accepts."""
    texts = [part for part in content if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(content) else content


# ---------------------------------------------------------------- to LangChain


def from_messages(messages: Iterable[Message]) -> list[BaseMessage]:
    """Convert a conversation for a LangChain chat model.

    Args:
        messages: The messages. The files of attachments are read into memory.

    Raises:
        ValueError: A file can't be read.
    """
    return [_langchain_message(message) for message in messages]


def _langchain_message(message: Message) -> BaseMessage:
    content = message.content if isinstance(message.content, str) else [_block(part) for part in message.parts]
    given: dict[str, Any] = {"content": content, "name": message.name}
    if message.role == "assistant":
        if message.reasoning is not None:
            given["additional_kwargs"] = {"reasoning_content": message.reasoning}
        calls = [{"id": call.id, "name": call.name, "args": call.arguments} for call in message.tool_calls]
        return AIMessage(tool_calls=calls, **given)
    if message.role == "tool":
        return ToolMessage(tool_call_id=message.tool_call_id or "", **given)
    kinds: dict[str, type[BaseMessage]] = {"user": HumanMessage, "system": SystemMessage}
    if message.role in kinds:
        return kinds[message.role](**given)
    return ChatMessage(role=message.role, **given)


def _block(part: str | Attachment) -> str | dict[str, Any]:
    """Return a part as a content block in LangChain's standard form."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.type.split("/")[0]
    block = {"type": kind if kind in _MEDIA else "file"}
    if not part.type.endswith("/*"):
        block["mime_type"] = part.type
    if part.url is not None:
        return block | {"url": part.url}
    data = read_file(part.path) if part.path is not None else part.data or b""
    return block | {"base64": base64.b64encode(data).decode("ascii")}
