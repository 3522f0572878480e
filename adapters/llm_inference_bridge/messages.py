# SPDX-License-Identifier: Apache-2.0
"""Converts between llm messages and TextModel messages. One llm message may hold several tool results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import llm
from llm.parts import AttachmentPart, Part, ReasoningPart, TextPart, ToolCallPart, ToolResultPart

from inference_bridge import Attachment, Message, ToolCall
from inference_bridge.authoring import read_file

# ---------------------------------------------------------------- from llm


def to_messages(messages: Iterable[llm.Message]) -> list[Message]:
    """Convert an llm conversation for TextModel.chat.

    Raises:
        ValueError: The type of an attachment can't be determined, or a message has a part of an unknown kind.
    """
    return [one for message in messages for one in _split(message)]


def _split(message: llm.Message) -> Iterator[Message]:
    """Yield the messages for one llm message. Each tool result becomes a separate message.

    An llm message may contain results in any place, because some servers run tools themselves.
    """
    kept: list[Part] = []
    for part in message.parts:
        if isinstance(part, ToolResultPart):
            if kept:
                yield _message(message.role, kept)
                kept = []
            yield _tool_result(part)
        else:
            kept.append(part)
    if kept or not message.parts:  # an empty answer is also a turn
        yield _message(message.role, kept)


def _message(role: str, parts: list[Part]) -> Message:
    content: list[str | Attachment] = []
    reasoning: list[str] = []
    calls: list[ToolCall] = []
    for part in parts:
        if isinstance(part, TextPart):
            content.append(part.text)
        elif isinstance(part, AttachmentPart) and part.attachment is not None:
            content.append(_attachment(part.attachment))
        elif isinstance(part, ReasoningPart):
            reasoning.append(part.text)
        elif isinstance(part, ToolCallPart):
            calls.append(ToolCall(part.tool_call_id or "", part.name, part.arguments))
        else:
            raise ValueError(
                f"a message has a {type(part).__name__}, which this version of inference-bridge does not support: "
                "update inference-bridge"
            )
    return Message(role, _joined(content), calls, reasoning="".join(reasoning) or None)


def _tool_result(part: ToolResultPart) -> Message:
    text = [part.output] if part.output else []
    content = _joined([*text, *map(_attachment, part.attachments)])
    return Message("tool", content, tool_call_id=part.tool_call_id, name=part.name or None)


def _joined(content: list[str | Attachment]) -> str | list[str | Attachment]:
    """Return content without attachments as one str, which every chat template accepts."""
    texts = [part for part in content if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(content) else content


def _attachment(attachment: llm.Attachment) -> Attachment:
    try:
        kind: str | None = attachment.resolve_type()  # type: ignore[no-untyped-call]
    except Exception as error:  # the file can't be read, or llm can't ask the server for a URL's type
        where = attachment.url or attachment.path or "without a name"
        raise ValueError(f"the type of the attachment {where} is not set, and can't be found out: {error}") from error
    if not kind:
        raise ValueError("the type of an attachment can't be found out from its content: set it with --at")
    if attachment.content:
        return Attachment(kind, data=attachment.content)
    return Attachment(kind, path=attachment.path) if attachment.path else Attachment(kind, url=attachment.url)


# ---------------------------------------------------------------- to llm


def from_messages(messages: Iterable[Message]) -> list[llm.Message]:
    """Convert a conversation for an llm model. Consecutive tool results become one message.

    The files of attachments are read into memory.

    Raises:
        ValueError: A file can't be read.
    """
    converted: list[llm.Message] = []
    names: dict[str, str] = {}
    for message in messages:
        names |= {call.id: call.name for call in message.tool_calls}
        parts = [_result_part(message, names)] if message.role == "tool" else _parts(message)
        if converted and converted[-1].role == message.role == "tool":
            converted[-1].parts += parts
        else:
            converted.append(llm.Message(message.role, parts))
    return converted


def _parts(message: Message) -> list[Part]:
    parts: list[Part] = [ReasoningPart(message.reasoning)] if message.reasoning else []
    for part in message.parts:
        if isinstance(part, Attachment):
            parts.append(AttachmentPart(_llm_attachment(part)))
        elif part:
            parts.append(TextPart(part))
    return parts + [ToolCallPart(call.name, call.arguments, call.id or None) for call in message.tool_calls]


def _result_part(message: Message, names: dict[str, str]) -> Part:
    """Convert a tool result. llm needs the tool's name; if the message has no name, the name in the call is used."""
    name = message.name or names.get(message.tool_call_id or "", "")
    attachments = [_llm_attachment(one) for one in message.attachments]
    return ToolResultPart(name, message.text, message.tool_call_id, attachments=attachments)


def _llm_attachment(attachment: Attachment) -> llm.Attachment:
    known = None if attachment.type.endswith("/*") else attachment.type
    # llm models would read any path, even a device or a pipe. `read_file` reads only regular files.
    data = attachment.data if attachment.path is None else read_file(attachment.path)
    return llm.Attachment(type=known, url=attachment.url, content=data)
