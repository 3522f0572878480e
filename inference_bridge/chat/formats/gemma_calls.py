# SPDX-License-Identifier: Apache-2.0
"""Tool calls of Gemma 4 and FunctionGemma: `call:name{key:value,…}`, with a mark before and after each string."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..reader import NoCallError, Reader, Steps
from ..values import BareValue, Dialect, ValueScanner, property_schema, schema_types, typed
from .json_calls import close


def gemma_calls(reader: Reader, mark: str, closer: str) -> Steps[None]:
    """Read one or more calls, and `closer` if it follows.

    Args:
        reader: The reader, after the opener.
        mark: The mark before and after a string. Models also write JSON's quotes, or no quotes.
        closer: The tag that ends the calls.
    """
    dialect = Dialect(mark=mark, colons=":=")
    more = True
    while more:
        yield from reader.space()
        yield from reader.expect("call:", ":")  # some checkpoints omit the word
        name = yield from reader.word()
        if (yield from reader.peek()) != "{":
            raise NoCallError
        reader.begin_call(name)
        yield from reader.stream_value(ValueScanner(dialect, _bare(reader.schemas.get(name, {}))), last=True)
        yield from reader.space()
        if (yield from reader.option(",")):
            yield from reader.space()
        more = reader.text.startswith("c", reader.at)
    yield from close(reader, closer)


def _bare(schema: Mapping[str, Any]) -> BareValue:
    """Return a function that writes a value without quotes as JSON, with the type from the parameter's schema."""

    def write(key: str | None, text: str) -> str:
        return typed(text, schema_types(property_schema(schema, key, schema), schema), True)

    return write
