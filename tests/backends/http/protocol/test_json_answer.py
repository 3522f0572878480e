# SPDX-License-Identifier: Apache-2.0
"""Answers to a JSON schema of servers that ignore it, or parts of it."""

from __future__ import annotations

from typing import Any

import pytest

from inference_bridge import ServerError, TextModel, load_model

from ....parts.servers.fault_server import last, piece, serving, stream

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}


async def answer(model: TextModel, is_async: bool, **options: Any) -> str:
    return await model.agenerate("x", **options).text() if is_async else model.generate("x", **options).text()


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "why"),
    [("Sure, ", "here", "json_schema"), ('{"a": ', '"one"}', "#/properties/a/type.* at #/a")],
    ids=["prose", "a value of another type"],
)
async def test_an_answer_that_does_not_satisfy_the_schema_is_an_error(
    first: str, second: str, why: str, is_async: bool
) -> None:
    events = stream(piece(first, 5, 0), piece(second, 6, 1), last(2))
    with serving({"/completion": [events]}) as server, load_model(server.address) as model:
        with pytest.raises(ServerError, match=why) as raised:
            await answer(model, is_async, json_schema=SCHEMA)
        assert raised.value.partial is not None
        assert raised.value.partial.text == first + second
        assert await answer(model, is_async) == first + second


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_invalid_schema_is_refused_before_anything_is_sent(is_async: bool) -> None:
    with serving({"/completion": [stream(last(0))]}) as server, load_model(server.address) as model:
        sent = len(server.asked)
        with pytest.raises(ValueError, match="json_schema"):
            await answer(model, is_async, json_schema={"pattern": "("})
        assert len(server.asked) == sent


@pytest.mark.parametrize(
    ("events", "options"),
    [
        (stream(piece(' {"a": ', 5, 0), piece("1}\n", 6, 1), last(2)), {}),
        (stream(piece('{"a": ', 5, 0), last(1, "limit")), {"max_tokens": 1}),
    ],
    ids=["JSON", "cut at max_tokens"],
)
async def test_json_and_what_was_cut_are_not_errors(events: Any, options: dict[str, Any]) -> None:
    with serving({"/completion": [events]}) as server, load_model(server.address) as model:
        for is_async in (False, True):
            assert (await answer(model, is_async, json_schema=SCHEMA, **options)).strip().startswith('{"a":')
