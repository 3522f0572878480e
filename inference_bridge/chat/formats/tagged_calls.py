# SPDX-License-Identifier: Apache-2.0
"""Tool calls in which each argument is between its own pair of tags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..reader import NoCallError, Reader, Steps, ValueStyle
from ..values import as_json, property_schema, schema_types, typed
from .json_calls import close, goes_on, json_calls, stream_object


@dataclass(frozen=True, slots=True)
class Tags:
    """The markup of arguments: `opens` KEY `names` `value` VALUE `closes`, and one of `ends` after the last argument.

    Args:
        opens: The markup before a key.
        names: The markup after a key.
        closes: The markup after a value.
        ends: The possible markup after the last argument.
        value: The markup before a value, after `names`.
        kind: The tag around the type of the value, which may come before `value`.
        loose: How to read a value whose schema has no type. True: any value that is valid JSON is read as JSON.
            False: only an object or an array is.
        values: The usual layout of values between the tags. The model's template may have another.
    """

    opens: str
    names: str
    closes: str
    ends: tuple[str, ...]
    value: str = ""
    kind: str = ""
    loose: bool = False
    values: ValueStyle = "inline"


_FUNCTION_ENDS = ("</function>", "</tool_call>", "</seed:tool_call>")
_PARAMETER = Tags("<parameter=", ">", "</parameter>", _FUNCTION_ENDS, values="lines")
_SEED_PARAMETER = Tags("<parameter=", ">", "</parameter>", _FUNCTION_ENDS)
_PARAM = Tags("<param name=", ">", "</param>", ("</function>",))


def key_value_tags(prefix: str = "", suffix: str = "") -> Tags:
    """Return GLM's tags. Other families add a prefix or a suffix to the name of each tag."""
    return Tags(
        f"<{prefix}arg_key{suffix}>",
        f"</{prefix}arg_key{suffix}>",
        f"</{prefix}arg_value{suffix}>",
        (f"</{prefix}tool_call{suffix}>",),
        f"<{prefix}arg_value{suffix}>",
        f"{prefix}arg_type{suffix}",
        loose=True,
    )


_ARGUMENT = key_value_tags()


def tool_call(reader: Reader, closer: str, tags: Tags = _ARGUMENT, function_tags: Tags = _PARAMETER) -> Steps[None]:
    """Read the text between `<tool_call>` and its end.

    Hermes and Qwen: JSON. Qwen3-Coder: `<function=name><parameter=key>value</parameter>…`.
    GLM: `name<arg_key>key</arg_key><arg_value>value</arg_value>…`.
    """
    yield from reader.space()
    first = yield from reader.peek()
    if first in "{[":
        yield from json_calls(reader, closer)
    elif first == "<":
        yield from reader.expect("<function=")
        yield from function(reader, function_tags)
        yield from close(reader, closer)
    else:
        yield from key_value_call(reader, tags)


def key_value_call(reader: Reader, tags: Tags, separator: str = "") -> Steps[None]:
    """Read a name, `separator` if it follows, and pairs of keys and values, up to the end of the call."""
    yield from reader.space()
    name = yield from reader.word()
    if name not in reader.schemas:
        raise NoCallError
    if separator:
        yield from reader.space()
        if (yield from reader.option(separator)):
            yield from reader.space()
            if (yield from reader.peek()) == "{":
                yield from stream_object(reader, name)
                yield from close(reader, *tags.ends, tags.ends[0].replace("/", "end_of_", 1))
                return
    yield from tagged(reader, name, tags)


def key_value_calls(reader: Reader, prefix: str, suffix: str) -> Steps[None]:
    """Hy3 and K2 Horizon: several calls in a pair of tags. Hunyuan, Apriel: JSON in the same tags."""
    tags = key_value_tags(prefix, suffix)
    closer = f"</{prefix}tool_calls{suffix}>"
    yield from reader.space()
    if (yield from reader.peek()) in "{[":
        yield from json_calls(reader, closer)
        return
    while True:
        yield from reader.expect(f"<{prefix}tool_call{suffix}>")
        yield from reader.space()
        if (yield from reader.peek()) == "{":
            yield from json_calls(reader, tags.ends[0])
            yield from reader.space()
            if not reader.text.startswith("<", reader.at) or (yield from reader.option(closer)):
                reader.drop()
                return
            continue
        yield from key_value_call(reader, tags, f"<{prefix}tool_sep{suffix}>")
        yield from reader.space()
        if not reader.text.startswith("<", reader.at) or (yield from reader.option(closer)):
            reader.drop()
            return


def function(reader: Reader, tags: Tags = _PARAMETER, known: bool = False) -> Steps[None]:
    """Read what follows `<function=`: a name, then a JSON object (Llama 3.1) or tagged parameters (Qwen3-Coder)."""
    name = yield from reader.word()
    yield from reader.expect(">")
    if known and name not in reader.schemas:
        raise NoCallError
    yield from reader.space()
    if (yield from reader.peek()) == "{":
        yield from stream_object(reader, name)
        yield from close(reader, "</function>")
    else:
        yield from tagged(reader, name, tags)


def lone_function(reader: Reader) -> Steps[None]:
    """Read what follows `<function=` without `<tool_call>` before it, which Qwen3-Coder sometimes omits."""
    yield from function(reader, known=True)
    yield from close(reader, "</tool_call>")


def seed_call(reader: Reader) -> Steps[None]:
    """Seed-OSS: Qwen3-Coder's tags, with values on the same line."""
    yield from tool_call(reader, "</seed:tool_call>", function_tags=_SEED_PARAMETER)


def named_function(reader: Reader) -> Steps[None]:
    """MiniCPM 5: what follows `<function name=`: `"f"><param name="key">value</param></function>`."""
    name = _attribute((yield from reader.until(">")))
    if name not in reader.schemas:
        raise NoCallError
    yield from tagged(reader, name, _PARAM)


def invoke(reader: Reader, prefix: str, closer: str) -> Steps[None]:
    """Read one or more `<invoke name="f"><parameter name="key">value</parameter>…</invoke>`.

    MiniMax M2 writes them so; DeepSeek V3.2 and V4, and Muse with a `prefix` in each tag. Dots also writes JSON
    between the outer tags.
    """
    yield from reader.space()
    if not prefix and (yield from reader.peek()) in "{[":
        yield from json_calls(reader, f"</{closer}>")
        return
    tags = Tags(f"<{prefix}parameter name=", ">", f"</{prefix}parameter>", (f"</{prefix}invoke>",))
    while True:
        yield from reader.space()
        yield from reader.expect(f"<{prefix}invoke name=")
        yield from tagged(reader, _attribute((yield from reader.until(">"))), tags)
        yield from reader.space()
        if not reader.text.startswith("<", reader.at) or (yield from reader.option(f"</{prefix}{closer}>")):
            reader.drop()
            return


STEP = "<\uff5ctool_{}\uff5c>"


def step(reader: Reader) -> Steps[None]:
    """Step 3: an element `steptml:invoke`, with one `steptml:parameter` for each argument, between Step's own tags."""
    tags = Tags("<steptml:parameter name=", ">", "</steptml:parameter>", ("</steptml:invoke>",))
    while True:
        yield from reader.space()
        yield from reader.expect(STEP.format("call_begin"))
        yield from reader.space()
        yield from reader.expect("function")
        yield from reader.space()
        yield from reader.expect(STEP.format("sep"))
        yield from reader.space()
        yield from reader.expect("<steptml:invoke name=")
        yield from tagged(reader, _attribute((yield from reader.until(">"))), tags)
        if not (yield from goes_on(reader, STEP.format("call_end"), STEP.format("calls_end"))):
            return


def _attribute(text: str) -> str:
    name = text.strip().strip("\"'")
    if not re.fullmatch(r"[\w.:/-]+", name):
        raise NoCallError
    return name


# ---------------------------------------------------------------- the arguments


_KEY = re.compile(r"""\s*["']?(?P<key>[^"'<>\n]+?)["']?(\s+string=["'](?P<string>\w+)["'])?\s*""")


def tagged(reader: Reader, name: str, tags: Tags) -> Steps[None]:
    """Begin a call whose name has been read, and read its arguments, up to one of `tags.ends`."""
    yield from reader.space()
    found = yield from reader.expect(tags.opens, *tags.ends)
    reader.begin_call(name)
    reader.arguments("{")
    schema = reader.schemas.get(name, {})
    comma = ""
    while found == tags.opens:
        match = _KEY.fullmatch((yield from reader.until(tags.names)))
        if match is None:
            raise NoCallError
        key, stated = match["key"], match["string"]
        if tags.value:
            yield from reader.space()
            if tags.kind and (yield from reader.option(f"<{tags.kind}>")):
                yield from reader.until(f"</{tags.kind}>")  # ignored: the type in the schema is used
                yield from reader.space()
            yield from reader.expect(tags.value)
        reader.arguments(f"{comma}{as_json(key)}: ")
        comma = ", "
        yield from _argument(reader, tags, schema, key, stated)
        yield from reader.space()
        found = yield from reader.expect(tags.opens, *tags.ends)
    reader.arguments("}", last=True)


def _argument(reader: Reader, tags: Tags, schema: Mapping[str, Any], key: str, stated: str | None) -> Steps[None]:
    # The attribute of DeepSeek's tags says whether the value is text or JSON.
    types = {"string"} if stated == "true" else schema_types(property_schema(schema, key, schema), schema)
    # If the template writes values on lines of their own, but the model does not, its value is read unchanged.
    lines = (reader.values or tags.values) == "lines" and bool((yield from reader.option("\n")))
    if lines:
        reader.drop()
    if types == {"string"}:
        cdata = tags is _PARAM and bool((yield from reader.option("<![CDATA[")))
        yield from reader.stream_text("]]>" if cdata else tags.closes, lines)
        if cdata:
            yield from reader.expect(tags.closes)
        return
    text = yield from reader.argument_until(tags.closes)
    if tags is _PARAM and text.startswith("<![CDATA["):
        text = text.removeprefix("<![CDATA[").removesuffix("]]>")
    if lines:
        text = text.removesuffix("\n")
    reader.arguments(typed(text, types, tags.loose or stated == "false"))
