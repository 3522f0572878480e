# SPDX-License-Identifier: Apache-2.0
"""Converts earlier tool calls and results to a form that a chat template can show.

Each function takes the messages of a conversation and returns new messages; it does not change
the caller's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from ..types import Message, ToolCall
from .call_notation import notation
from .generic_tools import contents, joined
from .markup import GENERIC_OPENERS, ChatFormat

CallWriter: TypeAlias = Callable[[Sequence[ToolCall]], str]

_LFM = ("<|tool_call_start|>", "<|tool_call_end|>")


IdForm: TypeAlias = Callable[[str, str, int], str]
"""Converts an id to one that a template accepts. Arguments: the id, the tool's name, the number of earlier calls."""


def with_ids(messages: Sequence[Message], form: IdForm) -> list[Message]:
    """Give every call an id, and every result the id and the name of its call.

    A result without an id belongs to the first call of the message before it that has no result yet.

    Args:
        messages: The conversation.
        form: Converts an id to one that the template accepts.

    Returns:
        The conversation with ids.
    """
    turns = []
    waiting: list[tuple[str, ToolCall]] = []
    count = 0
    for message in messages:
        if message.tool_calls:
            waiting = []
            for call in message.tool_calls:
                id = call.id or f"call{count + 1:05d}"
                waiting.append((id, replace(call, id=form(id, call.name, count))))
                count += 1
            message = replace(message, tool_calls=tuple(call for _, call in waiting))
        elif message.role == "tool":
            given = message.tool_call_id
            answered = next((pair for pair in waiting if not given or pair[0] == given), None)
            if answered is not None:
                waiting = [pair for pair in waiting if pair is not answered]
                call = answered[1]
                message = replace(message, tool_call_id=call.id, name=message.name or call.name)
            elif given:
                message = replace(message, tool_call_id=form(given, message.name or "", count))
        turns.append(message)
    return turns


def as_given(id: str, name: str, number: int) -> str:
    """Return the id unchanged."""
    return id


def nine_characters(id: str, name: str = "", number: int = 0) -> str:
    """Return an id of nine letters and digits, which most Mistral templates demand: the id itself, or its hash."""
    return id if re.fullmatch(r"[A-Za-z0-9]{9}", id) else hashlib.sha256(id.encode()).hexdigest()[:9]


def nine_or_more(id: str, name: str, number: int) -> str:
    """Return an id of at least nine characters: the id itself, or its hash."""
    return id if len(id) >= 9 else nine_characters(id)


def with_name(id: str, name: str, number: int) -> str:
    """Return an id as Kimi's models write it. Their template shows only the id, so it must contain the tool's name."""
    return id if not name or re.fullmatch(rf"functions\.{re.escape(name)}:\d+", id) else f"functions.{name}:{number}"


def one_call_each(messages: Sequence[Message]) -> list[Message]:
    """Split a message with several calls into one message for each call, followed by the call's result."""
    turns: list[Message] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        if len(message.tool_calls) < 2:
            turns.append(message)
            continue
        results = []
        while at < len(messages) and messages[at].role == "tool":
            results.append(messages[at])
            at += 1
        for number, call in enumerate(message.tool_calls):
            turns.append(replace(message if number == 0 else _bare(message), tool_calls=(call,)))
            turns += [result for result in results if result.tool_call_id == call.id]
            results = [result for result in results if result.tool_call_id != call.id]
        turns += results
    return turns


def text_apart(messages: Sequence[Message], *, reasoning_with_calls: bool = False) -> list[Message]:
    """Split a message with text and calls into two messages, the text first.

    The message with the text keeps the reasoning; if `reasoning_with_calls`, the message with the calls does.
    """
    return [part for message in messages for part in _apart(message, reasoning_with_calls)]


def _apart(message: Message, reasoning_with_calls: bool) -> Iterator[Message]:
    if message.tool_calls and message.content:
        yield replace(message, tool_calls=(), reasoning=None if reasoning_with_calls else message.reasoning)
        yield replace(message, content="") if reasoning_with_calls else _bare(message)
    else:
        yield message


def text_merged(messages: Sequence[Message]) -> list[Message]:
    """Move the texts beside calls to one assistant message in each turn, for templates that refuse a second one.

    That message is the turn's answer; if the turn has no answer yet, it is a new message before the first call.
    """
    turns: list[Message] = []
    turn: list[Message] = []
    for message in messages:
        if message.role in ("assistant", "tool"):
            turn.append(message)
        else:
            turns += [*_merged(turn), message]
            turn = []
    return turns + _merged(turn)


def _merged(turn: list[Message]) -> list[Message]:
    beside = [message for message in turn if message.tool_calls and message.content]
    if not beside:
        return turn
    turn = [replace(message, content="") if message.tool_calls else message for message in turn]
    for at, message in enumerate(turn):
        if message.role == "assistant" and not message.tool_calls:
            turn[at] = replace(message, content=joined(contents([*beside, message])))
            return turn
    first = next(at for at, message in enumerate(turn) if message.tool_calls)
    return [*turn[:first], Message("assistant", joined(contents(beside))), *turn[first:]]


def _bare(message: Message) -> Message:
    return replace(message, content="", reasoning=None)


def calls_as_content(messages: Sequence[Message], write: CallWriter) -> list[Message]:
    """Write calls as the content of their messages. Results keep their role."""
    return [
        replace(message, content=joined([*message.parts, write(message.tool_calls)]), tool_calls=())
        if message.tool_calls
        else message
        for message in messages
    ]


def call_writer(format: ChatFormat, messages: Sequence[Message], vocabulary: Container[str]) -> CallWriter | None:
    """Return a function that writes calls in the notation of this format.

    None: the format is Harmony or the generic one, or its notation can't represent the calls of `messages`.

    Args:
        format: The model's format.
        messages: The conversation.
        vocabulary: The texts of the model's tokens.
    """
    if format.harmony or format.openers == GENERIC_OPENERS:
        return None
    if _LFM[0] in format.openers:
        return lambda calls: f"{_LFM[0]}[{', '.join(map(_python_call, calls))}]{_LFM[1]}"
    names = {call.name for message in messages for call in message.tool_calls}
    found = notation(format, names, vocabulary)
    if found is None:
        return None

    def write(calls: Sequence[ToolCall]) -> str:
        written = (
            found.before
            + (json.dumps(call.name, ensure_ascii=False)[1:-1] if found.quoted else call.name)
            + found.middle
            + json.dumps(call.arguments, ensure_ascii=False)
            + found.after
            for call in calls
        )
        return found.opens + found.between.join(written) + found.closes

    return write


def _python_call(call: ToolCall) -> str:
    return f"{call.name}({', '.join(f'{name}={_python(value)}' for name, value in call.arguments.items())})"


def _python(value: Any) -> str:
    """Return a value as a Python literal, with strings in double quotes."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_python(str(key))}: {_python(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_python, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
