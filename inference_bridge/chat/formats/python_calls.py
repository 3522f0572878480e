# SPDX-License-Identifier: Apache-2.0
"""Tool calls in the syntax of Python: `f(a=1)` or `[f(a=1), g()]`."""

from __future__ import annotations

import re

from ..reader import NoCallError, Reader, Steps
from ..values import PYTHON, ValueScanner, as_json
from .json_calls import json_calls

_NAME_START = re.compile(r"[^\W\d]")


def python_calls(reader: Reader, *closers: str, known: bool = False) -> Steps[None]:
    """Read one call, or a list of calls, and one of `closers` if it follows.

    LFM2 and Llama 4 write them between their tags, Gemma 3 in a code block, Llama 3.2 and Olmo 3 without tags,
    Llama 3 for its built-in tools (`f.call(a=1)`).

    Args:
        reader: The reader, after the opener.
        closers: The tags that may end the calls.
        known: Whether each call must name a tool that was offered.
    """
    yield from reader.space()
    brackets = yield from reader.option("[", "(")
    more = ","
    while more == ",":
        yield from reader.space()
        if brackets and reader.calls and (yield from reader.option("]", ")")):
            more = ""
            break
        yield from _call(reader, known)
        yield from reader.space()
        if brackets:
            more = yield from reader.expect(",", "]" if brackets == "[" else ")")
        else:
            # Olmo 3 writes each call on a line of its own.
            yield from reader.option(";", ",")
            yield from reader.space()
            more = "," if _NAME_START.match(reader.text[reader.at : reader.at + 1]) and closers else ""
    reader.drop()
    yield from reader.space()
    found = yield from reader.option(*closers)
    if not found:
        reader.past_cut(*closers)
    reader.drop()


def _call(reader: Reader, known: bool) -> Steps[None]:
    name = yield from reader.word()
    assigned = yield from _assigned(reader)
    if assigned:
        name = yield from reader.word()
    yield from reader.expect("(")
    wrapped = name == "print" and name not in reader.schemas
    if wrapped:
        yield from reader.space()
        name = yield from reader.word()
        yield from reader.expect("(")
    if name not in reader.schemas:
        name = name.removesuffix(".call")
    if not re.fullmatch(r"[^\W\d][\w.:-]*", name) or (known and name not in reader.schemas):
        raise NoCallError
    positions = list(reader.schemas.get(name, {}).get("properties") or ())
    yield from reader.space()
    yield from _possible(reader)
    reader.begin_call(name)
    reader.arguments("{")
    first = True
    more = ","
    while more == ",":
        yield from reader.space()
        if (yield from reader.option(")")):
            break
        key = yield from _key(reader)
        if not key:
            if not positions:
                raise NoCallError
            key = positions[0]
        positions = [position for position in positions if position != key]
        reader.arguments(f"{'' if first else ', '}{as_json(key)}: ")
        first = False
        yield from reader.stream_value(ValueScanner(PYTHON))
        yield from reader.space()
        more = yield from reader.expect(",", ")")
    reader.arguments("}", last=True)
    if wrapped:
        yield from reader.space()
        yield from reader.expect(")")
        reader.complete()


def _assigned(reader: Reader) -> Steps[bool]:
    """Read past the `=` of `result = f()`, if there is one. Return whether there was."""
    at = reader.at
    yield from reader.space()
    if (yield from reader.option("=")):
        yield from reader.space()
        return True
    reader.at = at
    return False


def _possible(reader: Reader) -> Steps[None]:
    """Raise NoCallError if the text after the parenthesis can't be an argument."""
    if not re.match(r"[\w)'\"\[{(.+-]", (yield from reader.peek())):
        raise NoCallError


_KEYWORD = re.compile(r"([^\W\d]\w*)\s*=(?!=)")
_KEYWORD_BEGINS = re.compile(r"[^\W\d]\w*\s*=?")


def _key(reader: Reader) -> Steps[str]:
    """Read past `name=` before a value. Return the name, or "" if the value has none."""
    while True:
        rest = reader.text[reader.at : reader.at + 1000]
        begins = _KEYWORD_BEGINS.match(rest)
        if begins is None and rest:
            return ""
        match = _KEYWORD.match(rest)
        if begins is not None and begins.end() < len(rest):
            if match is None:
                return ""
            reader.at += match.end()
            return match[1]
        yield from reader.more()


# ---------------------------------------------------------------- Python, or JSON


def python_or_json(reader: Reader, *closers: str, known: bool = False) -> Steps[None]:
    """Read calls in JSON or in the syntax of Python: Llama 3 and 4 after their tags, Gemma 3 in a code block.

    Args:
        reader: The reader, after the opener.
        closers: The tags that may end the calls.
        known: Whether each call must name a tool that was offered.
    """
    yield from reader.space()
    first = yield from reader.peek()
    if first == "[":
        at = reader.at
        reader.at += 1
        yield from reader.space()
        inner = yield from reader.peek()
        reader.at = at
        first = "{" if inner == "{" else "p"
    if first == "{":
        yield from json_calls(reader, *closers, bare=known)
    else:
        yield from python_calls(reader, *closers, known=known)
