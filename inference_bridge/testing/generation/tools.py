# SPDX-License-Identifier: Apache-2.0
"""JSON schemas, tools and reasoning. A model that does not declare them must refuse them (behaviours 1 and 9)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from ...errors import BridgeError
from ...model import TextModel
from ...types import Message, Tool, ToolCall
from ..base import Contract
from ..callers import Sync
from .prompts import MARKUP


class Schemas(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (9,)

    def test_json_is_as_the_schema_says(self, model: TextModel, caller: Sync) -> None:
        if self._honours_schemas(model, caller):
            result = caller.generate(model, "Yes or no? ", json_schema=self.schema, max_tokens=self.room).result()
            self._check_json(result.text)
            assert result.finish_reason == "stop"

    def test_and_so_it_is_in_a_conversation(self, model: TextModel, caller: Sync) -> None:
        if self._honours_schemas(model, caller) and self.chats(model):
            result = caller.chat(model, self.asked(), json_schema=self.schema, max_tokens=self.room).result()
            self._check_json(result.text)
            assert result.finish_reason == "stop"

    def test_and_so_it_is_in_a_batch(self, model: TextModel, caller: Sync) -> None:
        if self._honours_schemas(model, caller):
            results = caller.call(
                model, "batch_generate", ["Yes? ", "No? "], json_schema=self.schema, max_tokens=self.room
            )
            for result in results:
                assert result.error is None
                self._check_json(result.text)

    def test_neighbours_have_schemas_of_their_own(self, model: TextModel, caller: Sync) -> None:
        if not self._honours_schemas(model, caller):
            return
        texts = [f"answer {number}" for number in range(self.slots(model))]
        schemas = [{"type": "object", "properties": {"say": {"const": text}}, "required": ["say"]} for text in texts]
        options: dict[str, Any] = {"max_tokens": self.room}
        results = caller.together(
            [lambda own, s=schema: own.generate(model, "Say: ", json_schema=s, **options) for schema in schemas]  # type: ignore[misc]
        )
        assert [json.loads(getattr(result, "text", "null")) for result in results] == [{"say": text} for text in texts]

    def test_a_schema_that_is_none_is_told(self, model: TextModel, caller: Sync) -> None:
        if self._honours_schemas(model, caller):
            wrong = {"type": "object", "properties": {"a": {"type": "nonsense"}}, "required": ["a"]}
            with pytest.raises((ValueError, BridgeError)):
                caller.generate(model, "x", json_schema=wrong, max_tokens=20).result()

    def _honours_schemas(self, model: TextModel, caller: Sync) -> bool:
        return self.honoured(model, lambda **kw: caller.generate(model, "x", **kw), "json_schema", self.schema)

    def _check_json(self, text: str) -> None:
        assert json.loads(text).get("answer") in ("yes", "no")
        assert list(json.loads(text)) == ["answer"]
        assert text == text.strip(), "the text has spaces around the JSON"


class Tools(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (1, 9)

    def test_a_forced_call(self, model: TextModel, caller: Sync) -> None:
        if not self._honours_tools(model, caller):
            return
        for choice in ("required", self.tool.name):
            stream = caller.chat(
                model,
                self.asked("What is magic_function(3)?"),
                tools=[self.tool],
                tool_choice=choice,
                max_tokens=self.room,
            )
            tokens = list(stream)
            result = stream.result()
            assert result.finish_reason == stream.finish_reason == "tool_calls"
            assert result.tool_calls
            assert stream.tool_calls == result.tool_calls
            for call in result.tool_calls:
                assert call.name == self.tool.name
                assert isinstance(call.arguments["input"], int)
                assert call.id
            assert not [markup for markup in MARKUP if markup in result.text]
            deltas = [token for token in tokens if token.kind == "tool_call"]
            assert deltas
            for token in deltas:
                assert token.text == ""
                assert token.tool_call is not None
            assert all(token.tool_call is None for token in tokens if token.kind != "tool_call")
            assert deltas[0].tool_call.name == self.tool.name

    def test_concurrent_callers_get_their_own_calls(self, model: TextModel, caller: Sync) -> None:
        if not self._honours_tools(model, caller):
            return
        tools = [Tool(f"tool_{number}", "Does it.") for number in range(2)]
        results = caller.together(
            [
                lambda own, t=tool: own.chat(  # type: ignore[misc]
                    model, self.asked(), tools=[t], tool_choice="required", max_tokens=self.room
                )
                for tool in tools
            ]
        )
        for tool, result in zip(tools, results, strict=True):
            assert not isinstance(result, Exception), result
            assert {call.name for call in result.tool_calls} == {tool.name}

    def test_none_is_called_where_none_may_be(self, model: TextModel, caller: Sync) -> None:
        if self._honours_tools(model, caller):
            options = self.greedily(model, tools=[self.tool], tool_choice="none")
            result = caller.chat(model, self.asked(), **options).result()
            assert result.tool_calls == ()
            assert result.finish_reason in ("stop", "length")

    def test_a_tool_may_be_a_mapping(self, model: TextModel, caller: Sync) -> None:
        if self._honours_tools(model, caller):
            options = self.greedily(model, tools=[self.tool.to_dict()])
            assert caller.chat(model, self.asked(), **options).result().finish_reason in (
                "stop",
                "length",
                "tool_calls",
            )

    def test_a_result_goes_back(self, model: TextModel, caller: Sync) -> None:
        if not self._honours_tools(model, caller):
            return
        turns = [
            *self.asked("What is magic_function(3)?"),
            Message("assistant", "", [ToolCall("call_1", self.tool.name, {"input": 3})]),
            Message("tool", "5", tool_call_id="call_1", name=self.tool.name),
        ]
        result = caller.chat(model, turns, **self.greedily(model, tools=[self.tool])).result()
        assert result.finish_reason in ("stop", "length", "tool_calls")

    @pytest.mark.parametrize("choice", ["required", "another"])
    def test_a_choice_that_there_is_not_is_told_at_the_call(self, model: TextModel, caller: Sync, choice: str) -> None:
        if self._honours_tools(model, caller):
            with pytest.raises(ValueError, match="tool"):
                caller.chat(model, self.asked(), tool_choice=choice)
            with pytest.raises(ValueError, match="another"):
                caller.chat(model, self.asked(), tools=[self.tool], tool_choice="another")

    def _honours_tools(self, model: TextModel, caller: Sync) -> bool:
        call = _generating(self, model, caller)
        with_choice = self.honoured(model, call, "tool_choice", "auto")
        return self.honoured(model, call, "tools", [self.tool]) and with_choice


class Reasoning(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (1, 9)

    @pytest.mark.parametrize("asked", [True, False, "low"], ids=repr)
    def test_reasoning_is_apart_from_the_answer(self, model: TextModel, caller: Sync, asked: Any) -> None:
        call = _generating(self, model, caller)
        if not self.honoured(model, call, "reasoning", asked):
            return
        result = call(**self.greedily(model, reasoning=asked, max_tokens=4 * self.length)).result()
        assert not [markup for markup in MARKUP if markup in result.text + result.reasoning]
        if asked is False:
            assert result.reasoning == ""

    def test_a_model_that_does_not_reason_yields_none(self, model: TextModel, caller: Sync) -> None:
        if self.chats(model) and "reasoning" not in model.capabilities:
            assert caller.chat(model, self.asked(), **self.greedily(model)).result().reasoning == ""


def _generating(suite: Contract, model: TextModel, caller: Sync) -> Callable[..., Any]:
    """Return a function that generates with given options, by `chat` if the model has chats."""
    if suite.chats(model):
        return lambda **options: caller.chat(model, suite.asked(), **options)
    return lambda **options: caller.generate(model, suite.prompt, **options)
