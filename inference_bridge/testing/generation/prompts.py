# SPDX-License-Identifier: Apache-2.0
"""Raw prompts and conversations (behaviour 1)."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from ...errors import UnsupportedError
from ...model import TextModel
from ...types import Message
from ..base import Contract, only
from ..callers import Sync

MARKUP = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|channel|>",
    "<|message|>",
    "[TOOL_CALLS]",
)
"""Markup from the chat templates of common model families. It must not occur in the text of an answer."""


class Prompts(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (1,)

    def test_generate_yields_text(self, model: TextModel, caller: Sync) -> None:
        tokens = list(caller.generate(model, self.prompt, **self.greedily(model)))
        assert tokens
        assert {token.kind for token in tokens} == {"text"}
        assert all(token.tool_call is None for token in tokens)

    def test_generate_parses_nothing(self, model: TextModel, caller: Sync) -> None:
        """After a raw prompt, markup in the output is text. A JSON schema makes the model write the markup."""
        said = "<think>a</think><tool_call>{}</tool_call>"
        schema = {"type": "object", "properties": {"text": {"const": said}}, "required": ["text"]}
        if self.honoured(model, lambda **kw: caller.generate(model, self.prompt, **kw), "json_schema", schema):
            result = caller.generate(model, self.prompt, json_schema=schema, max_tokens=self.room).result()
            assert {token.kind for token in result.tokens} == {"text"}
            assert json.loads(result.text) == {"text": said}
            assert result.tool_calls == ()

    def test_the_whole_prompt_is_counted(self, model: TextModel) -> None:
        try:
            count = model.count_tokens(self.prompt)
        except UnsupportedError as error:
            self.check_refusal(model, error, "count_tokens")
            return
        assert count > 0
        assert model.count_tokens("") == 0
        assert model.count_tokens(self.prompt * 2) > count
        assert self.alone(model).metrics.prompt_tokens >= count

    @pytest.mark.parametrize("wrong", [None, 3, b"x", ["x"]], ids=repr)
    def test_what_is_counted_is_text(self, model: TextModel, wrong: Any) -> None:
        with pytest.raises((TypeError, UnsupportedError)):
            model.count_tokens(wrong)

    def test_a_conversation_is_answered(self, model: TextModel, caller: Sync) -> None:
        if not self._answers_chats(model, caller):
            return
        stream = caller.chat(model, self.asked(), **self.greedily(model, max_tokens=3 * self.length))
        tokens = list(stream)
        assert stream.text() == only(tokens, "text")
        assert stream.text() or stream.result().reasoning, "the model generated neither an answer nor reasoning"
        said = "".join(token.text for token in tokens)
        assert not [markup for markup in MARKUP if markup in said]

    def test_messages_may_be_mappings(self, model: TextModel, caller: Sync) -> None:
        if not self._answers_chats(model, caller):
            return
        turns = [
            Message("user", "One?"),
            Message("assistant", "Two."),
            Message("user", [self.question[:4], self.question[4:]]),
        ]
        as_messages = caller.chat(model, turns, **self.greedily(model)).result()
        mappings = [{"role": turn.role, "content": turn.text} for turn in turns]
        as_mappings = caller.chat(model, mappings, **self.greedily(model)).result()
        assert as_mappings.metrics.prompt_tokens == as_messages.metrics.prompt_tokens
        if self.repeats:
            assert as_mappings.text == as_messages.text

    def test_every_turn_reaches_the_model(self, model: TextModel) -> None:
        if not self._answers_chats(model, Sync()):
            return

        def cost(*contents: str) -> int:
            roles = ("user", "assistant")
            turns = [Message(roles[index % 2], content) for index, content in enumerate(contents)]
            return model.chat(turns, max_tokens=1).result().metrics.prompt_tokens

        one, longer, three = cost("One?"), cost("One? " * 8), cost("One?", "Two.", "One?")
        if one:  # 0: the model does not report the number of prompt tokens
            assert one < longer
            assert one < three

    def _answers_chats(self, model: TextModel, caller: Sync) -> bool:
        """Return whether the model has chats. If not, check that they are refused."""
        if self.chats(model):
            return True
        with pytest.raises(UnsupportedError):
            caller.chat(model, self.asked()).result()
        return False
