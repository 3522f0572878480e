# SPDX-License-Identifier: Apache-2.0
"""Tool calls in JSON, with the name inside the JSON or before it."""

from __future__ import annotations

import json
import re
from typing import Any

from ..reader import NoCallError, Reader, Steps
from ..values import as_json

_NAME_KEYS = ("name", "tool_name", "function")
_ARGUMENT_KEYS = ("arguments", "parameters")
_OTHER_KEYS = ("type", "id", "call_id", "tool_call_id")


def json_calls(
    reader: Reader, *closers: str, bare: bool = False, keys: tuple[str, ...] = _ARGUMENT_KEYS
) -> Steps[None]:
    """Read one or more `{"name": …, "arguments": {…}}`, or an array of them, and one of `closers` if it follows.

    Args:
        reader: The reader, after the opener.
        closers: The tags that may end the calls.
        bare: Whether no tag announced the call. Then it must name a tool that was offered, and have no other keys.
        keys: The keys under which the arguments may be.
    """
    yield from reader.space()
    if (yield from reader.option("[")):
        more = ","
        while more == ",":
            yield from reader.space()
            if reader.calls and (yield from reader.option("]")):  # a comma after the last call
                break
            yield from _json_call(reader, bare, keys)
            yield from reader.space()
            more = yield from reader.expect(",", "]")
        reader.drop()
    else:
        more = "{"
        while more:
            yield from _json_call(reader, bare, keys)
            yield from reader.space()
            if (yield from reader.option(";", ",")):
                yield from reader.space()
            more = "{" if reader.text.startswith("{", reader.at) else ""
    yield from close(reader, *closers)


def close(reader: Reader, *closers: str) -> Steps[None]:
    """Read past the end of a call: surplus closing braces, and one of `closers` if it follows."""
    # Small models often write too many braces.
    found = "}"
    while closers and found == "}":
        yield from reader.space()
        found = yield from reader.option("}", *closers)
    reader.past_cut(*closers)
    reader.drop()


def _json_call(reader: Reader, bare: bool, keys: tuple[str, ...]) -> Steps[None]:
    name: Any = None
    id: str | None = None
    arguments: Any = None
    begun = False
    others: list[str] = []
    yield from reader.expect("{")
    yield from reader.option("{")  # written twice, as in the text of some templates
    more = ","
    while more == ",":
        yield from reader.space()
        if (yield from reader.peek()) == "}":
            reader.at += 1
            break
        key = yield from reader.json_string()
        yield from reader.space()
        yield from reader.expect(":")
        yield from reader.space()
        if key in keys and name is not None and not begun and (yield from reader.peek()) == "{":
            begin(reader, name, id, bare)
            begun = True
            yield from reader.stream_object()
        else:
            value = yield from reader.json_value()
            if begun and key in (*keys, *_NAME_KEYS):
                raise NoCallError  # the call has already begun, so this value would be lost
            if key in keys:
                arguments = value
            elif key in _NAME_KEYS and isinstance(value, str):
                name = value
            elif key == "function" and isinstance(value, dict):
                name = value.get("name")
                arguments = next((value[k] for k in keys if k in value), None)
            elif key == "id" and isinstance(value, str):
                id = value
            elif key not in _OTHER_KEYS:
                others.append(key)
                # An argument outside the object of the arguments would be lost.
                if bare or key in (reader.schemas.get(str(name), {}).get("properties") or ()):
                    raise NoCallError
        yield from reader.space()
        more = yield from reader.option(",", "}")
        if not more and not begun:
            raise NoCallError
    if not begun:
        # If another key replaces "arguments", the call would have no arguments.
        if not isinstance(name, str) or not name or (arguments is None and others):
            raise NoCallError
        written = _whole(arguments)
        begin(reader, name, id, bare)
        reader.arguments(written, last=True)
    reader.complete()


def _whole(arguments: Any) -> str:
    """Return arguments as the JSON text of an object. They were read before the name, or are a string of JSON."""
    try:
        if isinstance(arguments, str):
            arguments = json.loads(arguments or "{}", strict=False)
        written = as_json(arguments or {})
    except (ValueError, RecursionError):  # for example an infinite number, which JSON can't represent
        raise NoCallError from None
    if not isinstance(arguments, dict | None):
        raise NoCallError
    return written


def begin(reader: Reader, name: str, id: str | None = None, known: bool = False) -> None:
    """Begin a call.

    Args:
        reader: The reader.
        name: The tool's name.
        id: The call's id. None: make one.
        known: Whether the name must be that of a tool that was offered.

    Raises:
        NoCallError: The name is not that of a tool that was offered, or `reader.begin_call` raises it.
    """
    if known and name not in reader.schemas:
        raise NoCallError
    reader.begin_call(name, id)


def stream_object(reader: Reader, name: str, id: str | None = None) -> Steps[None]:
    """Begin a call whose name has been read, and read the JSON object that follows as its arguments.

    Raises:
        NoCallError: No JSON object follows, or it is not valid.
    """
    yield from reader.space()
    if (yield from reader.peek()) != "{":
        raise NoCallError
    reader.begin_call(name, id)
    yield from reader.stream_object()


def functools(reader: Reader) -> Steps[None]:
    """Phi 4 mini and firefunction: `functools[{…}, …]`. The opener includes the bracket."""
    reader.at -= 1
    yield from json_calls(reader)


def keyed(reader: Reader, closer: str) -> Steps[None]:
    """Apertus: `[{"name": {…}}, …]`, where the tool's name is the key of its arguments."""
    yield from reader.space()
    yield from reader.expect("[")
    more = ","
    while more == ",":
        yield from reader.space()
        if reader.calls and (yield from reader.option("]")):
            break
        yield from reader.expect("{")
        yield from reader.space()
        name = yield from reader.json_string()
        yield from reader.space()
        yield from reader.expect(":")
        yield from stream_object(reader, name)
        yield from reader.space()
        yield from reader.expect("}")
        reader.complete()
        yield from reader.space()
        more = yield from reader.expect(",", "]")
    reader.drop()
    yield from close(reader, closer)


# ---------------------------------------------------------------- a name, then JSON


def mistral(reader: Reader) -> Steps[None]:
    """Mistral: `[{…}, …]`, or since its 11th tokenizer `name[CALL_ID]id[ARGS]{…}`, repeated."""
    yield from reader.space()
    if (yield from reader.peek()) in "[{":
        yield from json_calls(reader)
        return
    while True:
        name = yield from reader.word()
        yield from reader.space()
        id = None
        if (yield from reader.option("[CALL_ID]")):
            id = yield from reader.word()
            yield from reader.space()
        yield from reader.option("[ARGS]")
        yield from stream_object(reader, name, id)
        yield from reader.space()
        if not re.match(r"\w", reader.text[reader.at : reader.at + 1]):
            reader.drop()
            return


DEEPSEEK = "<\uff5ctool\u2581{}\uff5c>"
PLAMO = "<|plamo:{}:plamo|>"


def deepseek(reader: Reader) -> Steps[None]:
    """DeepSeek V3 and R1: `function<sep>name`, a fenced JSON object; V3.1: `name<sep>{…}`."""
    while True:
        yield from reader.space()
        yield from reader.expect(DEEPSEEK.format("call\u2581begin"))
        name = yield from reader.word()
        yield from reader.expect(DEEPSEEK.format("sep"))
        fenced = (yield from reader.peek()) != "{"
        if fenced:
            name = yield from reader.word()
            yield from reader.space()
            yield from reader.option("```json")
        yield from stream_object(reader, name)
        if fenced:
            yield from reader.space()
            yield from reader.option("```")
        if not (yield from goes_on(reader, DEEPSEEK.format("call\u2581end"), DEEPSEEK.format("calls\u2581end"))):
            return


def kimi(reader: Reader, begun: bool = False) -> Steps[None]:
    """Kimi K2: the id of the call, such as `functions.name:0`, which contains the name, then a JSON object.

    Args:
        reader: The reader, after the opener.
        begun: Whether the opener was the tag of the first call, without the tag of the section.
    """
    while True:
        yield from reader.space()
        if not begun:
            yield from reader.expect("<|tool_call_begin|>")
            yield from reader.space()
        begun = False
        id = yield from reader.word()
        yield from reader.space()
        yield from reader.expect("<|tool_call_argument_begin|>")
        yield from stream_object(reader, re.sub(r":\d+$", "", id).removeprefix("functions."), id)
        if not (yield from goes_on(reader, "<|tool_call_end|>", "<|tool_calls_section_end|>")):
            return


def solar(reader: Reader) -> Steps[None]:
    """Solar Open: the id, the name and a JSON object, each after its own tag."""
    while True:
        yield from reader.space()
        yield from reader.expect("<|tool_call:begin|>")
        id = (yield from reader.until("<|tool_call:name|>")).strip()
        name = (yield from reader.until("<|tool_call:args|>")).strip()
        if not re.fullmatch(r"[\w.:/-]+", name) or not re.fullmatch(r"[\w.:/-]*", id):
            raise NoCallError
        yield from stream_object(reader, name, id or None)
        if not (yield from goes_on(reader, "<|tool_call:end|>", "<|calls|>")):
            return


def plamo(reader: Reader) -> Steps[None]:
    """PLaMo 3: the name and a JSON object, each between its own pair of tags."""
    while True:
        yield from reader.space()
        yield from reader.expect(PLAMO.format("begin_tool_request"))
        yield from reader.space()
        yield from reader.expect(PLAMO.format("begin_tool_name"))
        name = (yield from reader.until(PLAMO.format("end_tool_name"))).strip()
        if not re.fullmatch(r"[\w.:/-]+", name):
            raise NoCallError
        yield from reader.space()
        yield from reader.expect(PLAMO.format("begin_tool_arguments"))
        yield from reader.expect("<|plamo:constrain|>json<|plamo:msg|>", "<|plamo:msg|>", "")
        yield from reader.space()
        closer = PLAMO.format("end_tool_arguments")
        if (yield from reader.option(closer)):  # a tool without parameters
            reader.begin_call(name)
            reader.arguments("{}", last=True)
        else:
            yield from stream_object(reader, name)
            yield from reader.space()
            yield from reader.option(closer)
        if not (yield from goes_on(reader, PLAMO.format("end_tool_request"), PLAMO.format("end_tool_requests"))):
            return


def goes_on(reader: Reader, call_end: str, calls_end: str) -> Steps[bool]:
    """Read past the end of a call. Return whether another call follows."""
    yield from reader.space()
    yield from reader.option(call_end)
    reader.complete()
    yield from reader.space()
    if not reader.text.startswith("<", reader.at):
        reader.drop()
        return False
    if (yield from reader.option(calls_end)):
        reader.drop()
        return False
    return True
