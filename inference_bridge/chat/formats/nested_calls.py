# SPDX-License-Identifier: Apache-2.0
"""Tool calls whose tags are elements with attributes or children: MiniMax M3, Kimi K3."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import unescape
from typing import Any

from ..reader import NoCallError, Reader, Steps
from ..values import as_json, item_schema, property_schema, schema_types, typed

# ---------------------------------------------------------------- MiniMax M3

M3 = "]<]minimax[>["
_MAX_DEPTH = 64


def minimax_m3(reader: Reader) -> Steps[None]:
    """Read `<invoke name="f"><key>value</key>…</invoke>`, with M3's mark before each tag.

    A list has a child element `<item>` for each item. An object has a child element for each key.
    """
    while True:
        yield from reader.space()
        yield from reader.expect(f'{M3}<invoke name="')
        name = yield from reader.until('">')
        if not re.fullmatch(r"[\w.:/-]+", name):
            raise NoCallError
        yield from reader.space()
        found = yield from reader.expect(f"{M3}</invoke>", f"{M3}<")
        schema = reader.schemas.get(name, {})
        reader.begin_call(name)
        reader.arguments("{")
        comma = ""
        while found == f"{M3}<":
            key = yield from _tag_name(reader)
            written = yield from _element(reader, key, property_schema(schema, key, schema), schema, 0)
            reader.arguments(f"{comma}{as_json(key)}: {written}")
            comma = ", "
            yield from reader.space()
            found = yield from reader.expect(f"{M3}</invoke>", f"{M3}<")
        reader.arguments("}", last=True)
        yield from reader.space()
        if (yield from reader.option(f"{M3}</tool_call>")) or not reader.text.startswith("]", reader.at):
            reader.drop()
            return


def _tag_name(reader: Reader) -> Steps[str]:
    name = yield from reader.until(">")
    if not name or "<" in name or "\n" in name:
        raise NoCallError
    return name


def _element(reader: Reader, tag: str, schema: Any, root: Mapping[str, Any], depth: int) -> Steps[str]:
    """Read past an element whose opening tag has been read. Return its value as JSON."""
    if depth > _MAX_DEPTH:
        raise NoCallError
    text = yield from reader.argument_until(M3)
    keys: list[str] = []
    values: list[str] = []
    while not (yield from reader.option(f"</{tag}>")):
        yield from reader.expect("<")
        key = yield from _tag_name(reader)
        inner = item_schema(schema, root) if key == "item" else property_schema(schema, key, root)
        keys.append(key)
        values.append((yield from _element(reader, key, inner, root, depth + 1)))
        if (yield from reader.argument_until(M3)).strip():
            raise NoCallError
    types = schema_types(schema, root)
    if not keys:
        if not text.strip() and types in ({"array"}, {"object"}):
            return "[]" if types == {"array"} else "{}"
        return typed(text, types, False)
    if text.strip():
        raise NoCallError
    if set(keys) == {"item"} and types != {"object"}:
        return f"[{', '.join(values)}]"
    return "{" + ", ".join(f"{as_json(key)}: {value}" for key, value in zip(keys, values, strict=True)) + "}"


# ---------------------------------------------------------------- Kimi K3

_ATTRIBUTE = re.compile(r'\s*(\w+)="([^"]*)"')
_ATTRIBUTES = re.compile(r'(?:\s*\w+="[^"]*")*\s*')


def kimi_k3(reader: Reader, begun: bool = False) -> Steps[None]:
    """Read `<|open|>call tool="f" index="1"<|sep|>`, an element `argument` for each argument, and the closing tags.

    Args:
        reader: The reader, after the opener.
        begun: Whether the opener was the beginning of the first call's tag.
    """
    while True:
        yield from reader.space()
        if not begun:
            yield from reader.expect("<|open|>call ")
        begun = False
        name = (yield from _attributes(reader)).get("tool", "")
        if not name:
            raise NoCallError
        yield from reader.space()
        found = yield from reader.expect("<|open|>argument ", "<|open|>json", "<|close|>call<|sep|>")
        if found == "<|open|>json":
            yield from _attributes(reader)
            yield from reader.space()
            yield from reader.expect("{")
            reader.at -= 1
            reader.begin_call(name)
            yield from reader.stream_object()
            yield from reader.space()
            yield from reader.expect("<|close|>json<|sep|>")
            yield from reader.space()
            yield from reader.expect("<|close|>call<|sep|>")
        else:
            reader.begin_call(name)
            reader.arguments("{")
            yield from _k3_arguments(reader, name, found)
            reader.arguments("}", last=True)
        reader.complete()
        yield from reader.space()
        if (yield from reader.option("<|close|>tools<|sep|>")) or not reader.text.startswith("<|open|>c", reader.at):
            reader.drop()
            return


def _k3_arguments(reader: Reader, name: str, found: str) -> Steps[None]:
    schema = reader.schemas.get(name, {})
    comma = ""
    while found == "<|open|>argument ":
        stated = yield from _attributes(reader)
        key = stated.get("key", "")
        reader.arguments(f"{comma}{as_json(key)}: ")
        comma = ", "
        if stated.get("type") == "string":
            yield from reader.stream_text("<|close|>argument<|sep|>")
        else:
            text = yield from reader.argument_until("<|close|>argument<|sep|>")
            reader.arguments(typed(text, schema_types(property_schema(schema, key, schema), schema), True))
        yield from reader.space()
        found = yield from reader.expect("<|open|>argument ", "<|close|>call<|sep|>")


def _attributes(reader: Reader) -> Steps[dict[str, str]]:
    text = yield from reader.until("<|sep|>")
    if not _ATTRIBUTES.fullmatch(text):
        raise NoCallError
    return {match[1]: unescape(match[2]) for match in _ATTRIBUTE.finditer(text)}
