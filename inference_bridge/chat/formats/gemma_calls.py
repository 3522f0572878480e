# SPDX-License-Identifier: Apache-2.0
"""Tool calls of Gemma 4 and FunctionGemma: `call:name{key:value,…}`, with marks around strings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..reader import NoCallError, Reader, Steps
from ..values import BareValue, Dialect, ValueScanner, property_schema, schema_types, typed
from .json_calls import close


def gemma_calls(reader: Reader, mark: str, closer: str) -> Steps[None]:
    """One call or more, then `closer` if it is there.

    Args:
        reader: Where the text is read.
        mark: What stands at both ends of a string. Models also write JSON's quotes, and none.
        closer: The tag that ends the calls.
    """
    dialect = Dialect(mark=mark, colons=":=")
    more = True
    while more:
        yield from reader.space()
        yield from reader.expect("call:", ":")  # some checkpoints leave the word out
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
    """Writes values without quotes as what the schema of their parameter says."""

    def write(key: str | None, text: str) -> str:
        return typed(text, schema_types(property_schema(schema, key, schema), schema), True)

    return write
