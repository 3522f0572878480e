# SPDX-License-Identifier: Apache-2.0
"""What is nested too deeply to be read is an error of the call that brings it, and of no other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from inference_bridge import Message, Tool, ToolCall

from ..parts.models.scripted_engine import ScriptedEngine, ScriptedModel

DEEP: dict[str, Any] = {}
_inner = DEEP
for _ in range(20_000):
    _inner["a"] = _inner = {}

USER = Message("user", "hi")
CALLED = Message("assistant", "", tool_calls=(ToolCall(id="1", name="f", arguments=DEEP),))


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(ScriptedEngine()) as made:
        yield made


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ([USER, CALLED, Message("tool", "x", tool_call_id="1")], {}),
        ([USER], {"template_options": {"a": DEEP}}),
        ([USER], {"tools": [Tool("f", "", {"type": "object", "properties": {"x": {"enum": [DEEP]}}})]}),
    ],
    ids=["a call", "an option", "a tool"],
)
async def test_a_value_that_is_nested_too_deeply(
    model: ScriptedModel, messages: list[Message], options: dict[str, Any]
) -> None:
    other = model.chat([USER], max_tokens=4)
    next(other)
    with pytest.raises(ValueError, match="nested too deeply"):
        model.chat(messages, **options)
    with pytest.raises(ValueError, match="nested too deeply"):
        await model.achat(messages, **options).text()
    if not options:
        [failed, answered] = model.chat_batch([messages, [USER]], max_tokens=4)
        assert isinstance(failed.error, ValueError)
        assert answered.error is None
    assert other.text()
