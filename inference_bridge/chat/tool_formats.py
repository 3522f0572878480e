# SPDX-License-Identifier: Apache-2.0
"""How models write tool calls: a reader for each family's notation.

`OPENERS` maps the text that opens a call to the reader of what follows it. A reader hands
on a call's name as soon as it is certain, then its arguments as JSON text as they come, and
raises NoCallError where the text is no call after all.

The notations are those of the models' own chat templates; the results agree with mlx-lm's
`tool_parsers`, except that a "null" for a parameter of type string stays a string.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from .reader import NoCallError, Reader, Steps

CallReader: TypeAlias = Callable[[Reader], Steps[None]]

_NAME_KEYS = ("name", "tool_name", "function")
_ARGUMENT_KEYS = ("arguments", "parameters")
_OTHER_KEYS = ("type", "id", "call_id", "tool_call_id")


# ---------------------------------------------------------------- JSON


def json_calls(reader: Reader, *closers: str, bare: bool = False) -> Steps[None]:
    """`{"name": …, "arguments": {…}}`, one or more, or an array of them, then one of `closers` if it is there.

    `bare`: nothing announced the call, so it must be of a known tool and have no other keys.
    """
    yield from reader.space()
    if (yield from reader.option("[")):
        more = ","
        while more == ",":
            yield from reader.space()
            yield from _json_call(reader, bare)
            yield from reader.space()
            more = yield from reader.expect(",", "]")
        reader.drop()
    else:
        more = "{"
        while more:
            yield from _json_call(reader, bare)
            yield from reader.space()
            if (yield from reader.option(";", ",")):
                yield from reader.space()
            more = "{" if reader.text.startswith("{", reader.at) else ""
    yield from _close(reader, *closers)


def _close(reader: Reader, *closers: str) -> Steps[None]:
    # Small models lose count of braces.
    found = "}"
    while closers and found == "}":
        yield from reader.space()
        found = yield from reader.option("}", *closers)
    rest = reader.text[reader.at :]
    if reader.ended and any(closer.startswith(rest) for closer in closers):
        reader.at += len(rest)
    reader.drop()


def _json_call(reader: Reader, bare: bool) -> Steps[None]:
    name: str | None = None
    id: str | None = None
    arguments: Any = None
    begun = False
    yield from reader.expect("{")
    more = ","
    while more == ",":
        yield from reader.space()
        key = yield from reader.json_string()
        yield from reader.space()
        yield from reader.expect(":")
        yield from reader.space()
        if key in _ARGUMENT_KEYS and name is not None and not begun and (yield from reader.peek()) == "{":
            _begin(reader, name, id, bare)
            begun = True
            yield from reader.stream_object()
        else:
            value = yield from reader.json_value()
            if key in _ARGUMENT_KEYS:
                arguments = value
            elif key in _NAME_KEYS and isinstance(value, str):
                name = value
            elif key == "function" and isinstance(value, dict):
                name = value.get("name")
                arguments = next((value[k] for k in _ARGUMENT_KEYS if k in value), None)
            elif key == "id" and isinstance(value, str):
                id = value
            elif bare and key not in _OTHER_KEYS:
                raise NoCallError
        yield from reader.space()
        more = yield from reader.option(",", "}")
        if not more and not begun:
            raise NoCallError
    if not begun:
        if not isinstance(name, str) or not name:
            raise NoCallError
        try:
            if isinstance(arguments, str):
                arguments = json.loads(arguments or "{}", strict=False)
            written = _json(arguments or {})
        except (ValueError, RecursionError):  # an infinite number, say, which JSON can't write
            raise NoCallError from None
        if not isinstance(arguments, dict | None):
            raise NoCallError
        _begin(reader, name, id, bare)
        reader.arguments(written, last=True)
    reader.drop()


def _begin(reader: Reader, name: str, id: str | None = None, known: bool = False) -> None:
    """Begin the call; `known`: of a tool that was offered, or it is none."""
    if known and name not in reader.schemas:
        raise NoCallError
    reader.begin_call(name, id)


def _json(value: Any) -> str:
    """As JSON. Raises ValueError for numbers that it does not have."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # Half a character, which only an escape can write, stays one.
    return text if text.isascii() or not _HALF.search(text) else json.dumps(value, allow_nan=False)


_HALF = re.compile("[\ud800-\udfff]")


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
        yield from reader.space()
        if (yield from reader.peek()) != "{":
            raise NoCallError
        reader.begin_call(name, id)
        yield from reader.stream_object()
        yield from reader.space()
        if not re.match(r"\w", reader.text[reader.at :]):
            reader.drop()
            return


_DEEPSEEK = "<\uff5ctool\u2581{}\uff5c>"


def deepseek(reader: Reader) -> Steps[None]:
    """DeepSeek V3 and R1: `function<sep>name`, a fenced JSON object; V3.1: `name<sep>{…}`."""
    while True:
        yield from reader.space()
        yield from reader.expect(_DEEPSEEK.format("call\u2581begin"))
        name = yield from reader.word()
        yield from reader.expect(_DEEPSEEK.format("sep"))
        fenced = (yield from reader.peek()) != "{"
        if fenced:
            name = yield from reader.word()
            yield from reader.space()
            yield from reader.option("```json")
            yield from reader.space()
            if (yield from reader.peek()) != "{":
                raise NoCallError
        reader.begin_call(name)
        yield from reader.stream_object()
        if fenced:
            yield from reader.space()
            yield from reader.option("```")
        yield from reader.space()
        yield from reader.option(_DEEPSEEK.format("call\u2581end"))
        reader.drop()
        yield from reader.space()
        if not reader.text.startswith("<", reader.at):
            reader.drop()
            return
        if (yield from reader.option(_DEEPSEEK.format("calls\u2581end"))):
            reader.drop()
            return


def kimi(reader: Reader) -> Steps[None]:
    """Kimi K2: `functions.name:0`, whose whole is the call's id, then a JSON object."""
    while True:
        yield from reader.space()
        yield from reader.expect("<|tool_call_begin|>")
        yield from reader.space()
        id = yield from reader.word()
        yield from reader.space()
        yield from reader.expect("<|tool_call_argument_begin|>")
        yield from reader.space()
        if (yield from reader.peek()) != "{":
            raise NoCallError
        reader.begin_call(re.sub(r":\d+$", "", id).removeprefix("functions."), id)
        yield from reader.stream_object()
        yield from reader.space()
        yield from reader.option("<|tool_call_end|>")
        reader.drop()
        yield from reader.space()
        if not reader.text.startswith("<", reader.at):
            reader.drop()
            return
        if (yield from reader.option("<|tool_calls_section_end|>")):
            reader.drop()
            return


# ---------------------------------------------------------------- tags


@dataclass(frozen=True, slots=True)
class Tags:
    """How arguments stand in tags: `opens` key `names` value `closes`, and `ends` after the last.

    `loose`: a value whose schema says no type is JSON if it reads as JSON; else it is
    text, unless it is an object or an array.
    """

    opens: str
    names: str
    closes: str
    ends: tuple[str, ...]
    value: str = ""
    loose: bool = False


_PARAMETER = Tags("<parameter=", ">", "</parameter>", ("</function>", "</tool_call>", "</seed:tool_call>"))
_ARG_KEY = Tags("<arg_key>", "</arg_key>", "</arg_value>", ("</tool_call>",), "<arg_value>", loose=True)


def tool_call(reader: Reader, *closers: str) -> Steps[None]:
    """What stands between `<tool_call>` and its end.

    Hermes and Qwen: JSON. Qwen3-Coder: `<function=name><parameter=key>value</parameter>…`.
    GLM: `name<arg_key>key</arg_key><arg_value>value</arg_value>…`.
    """
    yield from reader.space()
    first = yield from reader.peek()
    if first in "{[":
        yield from json_calls(reader, *closers)
    elif first == "<":
        yield from reader.expect("<function=")
        yield from function(reader)
        yield from _close(reader, *closers)
    else:
        name = yield from reader.word()
        if name not in reader.schemas:
            raise NoCallError
        yield from _tagged(reader, name, _ARG_KEY)


def function(reader: Reader, known: bool = False) -> Steps[None]:
    """What follows `<function=`: a name, then a JSON object (Llama 3.1) or tagged parameters (Qwen3-Coder)."""
    name = yield from reader.word()
    yield from reader.expect(">")
    if known and name not in reader.schemas:
        raise NoCallError
    yield from reader.space()
    if (yield from reader.peek()) == "{":
        reader.begin_call(name)
        yield from reader.stream_object()
        yield from _close(reader, "</function>")
    else:
        yield from _tagged(reader, name, _PARAMETER)


def lone_function(reader: Reader) -> Steps[None]:
    """`<function=` without `<tool_call>` before it, which Qwen3-Coder forgets now and then."""
    yield from function(reader, known=True)
    yield from _close(reader, "</tool_call>")


def invoke(reader: Reader, prefix: str, closer: str) -> Steps[None]:
    """MiniMax M2, and with a `prefix` to each tag DeepSeek V3.2 and Muse: one or more of

    `<invoke name="f"><parameter name="key">value</parameter>…</invoke>`
    """
    tags = Tags(f"<{prefix}parameter name=", ">", f"</{prefix}parameter>", (f"</{prefix}invoke>",))
    while True:
        yield from reader.space()
        yield from reader.expect(f"<{prefix}invoke name=")
        name = (yield from reader.until(">")).strip().strip("\"'")
        if not re.fullmatch(r"[\w.:/-]+", name):
            raise NoCallError
        yield from _tagged(reader, name, tags)
        yield from reader.space()
        if not reader.text.startswith("<", reader.at) or (yield from reader.option(f"</{prefix}{closer}>")):
            reader.drop()
            return


_KEY = re.compile(r"""\s*["']?(?P<key>[^"'>]*?)["']?(\s+string=["'](?P<string>\w+)["'])?\s*""")


def _tagged(reader: Reader, name: str, tags: Tags) -> Steps[None]:
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
            yield from reader.expect(tags.value)
        reader.arguments(f"{comma}{_json(key)}: ")
        comma = ", "
        # DeepSeek's tags say themselves whether the value is text or JSON.
        types = {"string"} if stated == "true" else _types(_property(schema, key), schema)
        if (yield from reader.option("\n")):
            reader.drop()
        if types == {"string"}:
            yield from reader.stream_text(tags.closes, newline=True)
        else:
            text = yield from reader.until(tags.closes)
            reader.arguments(_typed(text.removesuffix("\n"), types, tags.loose or stated == "false"))
        yield from reader.space()
        found = yield from reader.expect(tags.opens, *tags.ends)
    reader.arguments("}", last=True)


def _property(schema: Mapping[str, Any], key: str) -> Any:
    properties = schema.get("properties")
    return properties.get(key) if isinstance(properties, Mapping) else None


_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def _types(schema: Any, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """The JSON types that a schema allows; empty if it doesn't say."""
    if not isinstance(schema, Mapping) or depth > 8:
        return set()
    stated = schema.get("type")
    types = {stated} if isinstance(stated, str) else set(stated) if isinstance(stated, list) else set()
    if not types and isinstance(schema.get("enum"), list):
        types = {_TYPES.get(type(value), "null") for value in schema["enum"]}
    for choice in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(choice) or ():
            types |= _types(part, root, depth + 1)
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        target: Any = root
        for step in reference[2:].split("/"):
            target = target.get(step) if isinstance(target, Mapping) else None
        types |= _types(target, root, depth + 1)
    return types


def _typed(text: str, types: set[str], loose: bool) -> str:
    """A value that stands as plain text, as JSON of one of `types` where it can be read so."""
    value = _literal(text.strip())
    if value is _UNREADABLE:
        value = text
    elif isinstance(value, bool):
        value = value if (loose and not types) or "boolean" in types else text
    elif isinstance(value, float) and value.is_integer() and "integer" in types and "number" not in types:
        value = int(value)
    elif types and value is not None:
        kind = _TYPES[type(value)]
        value = value if kind in types or (kind == "integer" and "number" in types) else text
    elif not loose and not isinstance(value, dict | list | None):
        value = text
    return _json(value)


_UNREADABLE = object()


def _literal(text: str) -> Any:
    """JSON, or else a Python literal that is JSON's equal."""
    try:
        value = json.loads(text, strict=False)
        _json(value)  # which refuses what only Python reads, and numbers beyond a double
        return value
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(_json(ast.literal_eval(text)))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _UNREADABLE


# ---------------------------------------------------------------- Gemma


def gemma(reader: Reader, quote: str, closer: str) -> Steps[None]:
    """Gemma 4 and FunctionGemma: `call:name{key:value,…}` with strings between `quote`s, one or more."""
    more = "call:"
    while more:
        yield from reader.space()
        yield from reader.expect("call:")
        name = yield from reader.word()
        if (yield from reader.peek()) != "{":
            raise NoCallError
        reader.begin_call(name)
        yield from _gemma_value(reader, quote, 0)
        reader.calling = False
        yield from reader.space()
        if (yield from reader.option(",")):
            yield from reader.space()
        more = "call:" if reader.text.startswith("c", reader.at) else ""
    yield from _close(reader, closer)


_BARE = re.compile(r"[^,}\]]*(?=[,}\]])")


def _gemma_value(reader: Reader, quote: str, depth: int) -> Steps[None]:
    if depth > 64:
        raise NoCallError
    yield from reader.space()
    opens = yield from reader.option(quote, "{", "[")
    if opens == quote:
        yield from reader.stream_text(quote)
    elif not opens:
        while not (match := _BARE.match(reader.text, reader.at)):
            yield from reader.more()
        reader.at = match.end()
        value = _literal(match[0].strip())
        reader.arguments(_json(match[0].strip() if value is _UNREADABLE else value))
    else:
        closes = "}" if opens == "{" else "]"
        reader.arguments(opens)
        yield from reader.space()
        more = "" if (yield from reader.option(closes)) else ","
        first = True
        while more == ",":
            yield from reader.space()
            if opens == "{":
                key = (yield from reader.until(":")).strip().replace(quote, "").strip('"')
                reader.arguments(f"{'' if first else ', '}{_json(key)}: ")
            elif not first:
                reader.arguments(", ")
            first = False
            yield from _gemma_value(reader, quote, depth + 1)
            yield from reader.space()
            more = yield from reader.expect(",", closes)
        reader.arguments(closes)


# ---------------------------------------------------------------- Python


_PYTHON_STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def pythonic(reader: Reader, closer: str = "", known: bool = False) -> Steps[None]:
    """Calls as Python writes them, `f(a=1)` or `[f(a=1), g()]`, up to `closer` or the end of the text.

    LFM2 between its tags, Gemma 3 in a code block, Llama 3 for its built-in tools (`f.call(a=1)`).
    """
    start = reader.at
    try:
        while not closer:
            yield from reader.more()
        source = yield from reader.until(closer)
    except NoCallError:
        if not reader.ended:
            raise
        source, reader.at = reader.text[start:], len(reader.text)
    # Values come with line breaks in them, which Python's plain strings can't have.
    source = _PYTHON_STRING.sub(lambda match: match[0].replace("\n", "\\n"), source)
    try:
        statements = ast.parse(source.strip()).body
        calls = [call for statement in statements for call in _python_calls(statement, reader.schemas)]
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise NoCallError from None
    if not calls or (known and any(name not in reader.schemas for name, _ in calls)):
        raise NoCallError
    for name, arguments in calls:
        reader.begin_call(name)
        reader.arguments(arguments, last=True)
    yield from reader.drop_space()


def _python_calls(statement: ast.stmt, schemas: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    if not isinstance(statement, ast.Expr | ast.Assign) or statement.value is None:
        raise ValueError
    value = statement.value
    nodes = value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
    return [_python_call(node, schemas) for node in nodes]


def _python_call(node: ast.expr, schemas: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    if not isinstance(node, ast.Call):
        raise ValueError
    name = ast.unparse(node.func).removesuffix(".call")
    if name == "print" and name not in schemas and len(node.args) == 1:
        return _python_call(node.args[0], schemas)
    if not re.fullmatch(r"[\w.]+", name):
        raise ValueError
    positions = list(schemas.get(name, {}).get("properties") or ())
    if len(node.args) > len(positions):
        raise ValueError
    arguments = dict(zip(positions, node.args, strict=False))
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError
        arguments[keyword.arg] = keyword.value
    return name, _json({key: ast.literal_eval(_JSONNames().visit(value)) for key, value in arguments.items()})


class _JSONNames(ast.NodeTransformer):
    """Templates render nested values as JSON, whose names of constants are not Python's."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        constants = {"true": True, "false": False, "null": None}
        return ast.Constant(constants[node.id]) if node.id in constants else node


# ---------------------------------------------------------------- which opens which


def _python_tag(reader: Reader) -> Steps[None]:
    """Llama 3: JSON, or a call of a built-in tool."""
    yield from reader.space()
    if (yield from reader.peek()) in "{[":
        yield from json_calls(reader)
    elif re.match(r"[A-Za-z_]", reader.text[reader.at :]):
        yield from pythonic(reader)
    else:
        raise NoCallError


def _code(reader: Reader) -> Steps[None]:
    """Gemma 3: a block of code that calls a tool that was offered."""
    yield from reader.space()
    if (yield from reader.peek()) == "{":
        yield from json_calls(reader, "```", bare=True)
    else:
        yield from pythonic(reader, "```", known=True)


def _functools(reader: Reader) -> Steps[None]:
    reader.at -= 1
    yield from json_calls(reader)


OPENERS: dict[str, CallReader] = {
    "<tool_call>": lambda reader: tool_call(reader, "</tool_call>"),
    "<seed:tool_call>": lambda reader: tool_call(reader, "</seed:tool_call>"),
    "<function=": lone_function,
    "<tool_calls>": lambda reader: json_calls(reader, "</tool_calls>"),
    "<minimax:tool_call>": lambda reader: invoke(reader, "", "minimax:tool_call"),
    "<atem:function_calls>": lambda reader: invoke(reader, "atem:", "function_calls"),
    "<\uff5cDSML\uff5cfunction_calls>": lambda reader: invoke(reader, "\uff5cDSML\uff5c", "function_calls"),
    "<\uff5cDSML\uff5ctool_calls>": lambda reader: invoke(reader, "\uff5cDSML\uff5c", "tool_calls"),
    "[TOOL_CALLS]": mistral,
    "<TOOLCALL>": lambda reader: json_calls(reader, "</TOOLCALL>"),
    "<|function_call|>": json_calls,
    "<|tool_call|>": lambda reader: json_calls(reader, "<|/tool_call|>"),
    "functools[": _functools,
    "<|python_tag|>": _python_tag,
    "<|START_ACTION|>": lambda reader: json_calls(reader, "<|END_ACTION|>"),
    _DEEPSEEK.format("calls\u2581begin"): deepseek,
    "<|tool_calls_section_begin|>": kimi,
    "<|tool_call>": lambda reader: gemma(reader, '<|"|>', "<tool_call|>"),
    "<start_function_call>": lambda reader: gemma(reader, "<escape>", "<end_function_call>"),
    "<|tool_call_start|>": lambda reader: pythonic(reader, "<|tool_call_end|>"),
    "```json": lambda reader: json_calls(reader, "```", bare=True),
    "```tool_call": lambda reader: json_calls(reader, "```", bare=True),
    "```tool_code": _code,
}
