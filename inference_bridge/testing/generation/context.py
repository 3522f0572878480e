# SPDX-License-Identifier: Apache-2.0
"""The end of the context window, and reuse of prefixes (behaviours 8 and 10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest

from ...errors import ContextLengthExceededError
from ...model import TextModel
from ...types import Message
from ..base import Contract
from ..callers import Sync

_SLACK = 4
"""Tokens at the end of a prompt that are possibly not reused: they may be tokenized differently before another text,
and an engine evaluates the last token again."""
_TAIL = 16
"""Maximum number of tokens after the last message in a chat template."""


class Context(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (8,)

    def test_a_prompt_over_the_context_is_an_error_with_both_numbers(self, model: TextModel, caller: Sync) -> None:
        limit = self._stated_limit(model)
        stream = caller.generate(model, self._prompt_of(model)(limit + 16))  # the call itself does not raise the error
        with pytest.raises(ContextLengthExceededError) as raised:
            next(stream)
        error = raised.value
        assert error.context_length == limit
        assert error.prompt_tokens > limit
        assert str(limit) in str(error)
        assert error.partial is not None
        assert error.partial.tokens == ()
        assert stream.finish_reason is None
        self.is_free(model)

    def test_so_is_a_conversation(self, model: TextModel, caller: Sync) -> None:
        limit = self._stated_limit(model)
        if self.chats(model):
            with pytest.raises(ContextLengthExceededError) as raised:
                caller.chat(model, self.asked(self._prompt_of(model)(limit + 16))).result()
            assert raised.value.context_length == limit

    def test_running_into_the_end_is_its_length(self, model: TextModel, caller: Sync) -> None:
        limit = self._stated_limit(model)
        result = caller.generate(model, self._prompt_of(model)(limit - 8), max_tokens=-1).result()
        total = result.metrics.prompt_tokens + result.metrics.generated_tokens
        assert result.metrics.prompt_tokens <= limit
        assert result.tokens or result.finish_reason == "stop"
        assert total <= limit + 1
        assert result.finish_reason == "length" or total < limit

    def test_one_prompt_of_a_batch(self, model: TextModel, caller: Sync) -> None:
        limit = self._stated_limit(model)
        long = self._prompt_of(model)(limit + 16)
        results = caller.call(model, "batch_generate", [self.prompt, long, self.prompt], **self.greedily(model))
        assert isinstance(results[1].error, ContextLengthExceededError)
        assert results[0].error is results[2].error is None
        assert results[0].text == results[2].text or not self.repeats
        assert results[0].text

    def _stated_limit(self, model: TextModel) -> int:
        limit = model.info.context_length
        if not limit:
            pytest.skip("the length of the context window is unknown (info.context_length is 0)")
        return limit

    def _prompt_of(self, model: TextModel) -> Callable[[int], str]:
        """Return a function that makes a prompt of a given number of tokens, or slightly fewer."""

        def text(words: int) -> str:
            return "a" + " a" * (words - 1)

        few, more = (model.generate(text(words), max_tokens=1).result().metrics.prompt_tokens for words in (8, 24))
        each = (more - few) / 16
        assert each > 0, "a longer prompt does not have more prompt_tokens: are they measured?"
        return lambda tokens: text(max(int((tokens - few) / each) + 8, 1))


class Turns(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (10,)

    def test_a_longer_prompt_evaluates_only_what_is_new(self, model: TextModel, caller: Sync) -> None:
        prompt = f"{self.prompt}, {self.question} {self.prompt}, {self.question}"
        first = caller.generate(model, prompt, max_tokens=1).result()
        second = caller.generate(model, f"{prompt}\n\nThen {self.question}", max_tokens=1).result()
        if self.reuses_prefixes:
            tail = _SLACK if self.raw else _TAIL
            assert second.metrics.cached_tokens >= first.metrics.prompt_tokens - tail
        assert second.metrics.cached_tokens < second.metrics.prompt_tokens or not second.metrics.prompt_tokens

    def test_the_next_turn_of_a_conversation(self, model: TextModel, caller: Sync) -> None:
        if not self.chats(model):
            return
        turns = self.asked()
        first = caller.chat(model, turns, **self.greedily(model)).result()
        turns += [Message("assistant", first.text), *self.asked("And of Italy?")]
        second = caller.chat(model, turns, **self.greedily(model)).result()
        if self.reuses_prefixes:
            assert second.metrics.cached_tokens >= first.metrics.prompt_tokens - _SLACK
        again = caller.chat(model, turns, **self.greedily(model)).result()
        assert again.metrics.prompt_tokens == second.metrics.prompt_tokens

    def test_reuse_is_never_a_wrong_answer(self, model: TextModel, caller: Sync) -> None:
        """The prompts have a common prefix, and run in orders in which each finds the cache of another one."""
        stem = f"{self.question} {self.prompt}"
        prompts = [f"{stem} {end}" for end in ("one, two,", "red, green,", "one, two, three, four,", "")]
        first = [self.alone(model, prompt).text for prompt in prompts]
        if self.repeats and caller.mode == "sync":
            with self.load() as fresh:  # a fresh model, asked in the reverse order
                again = [fresh.generate(prompt, **self.greedily(fresh)).text() for prompt in prompts[::-1]]
            assert again[::-1] == first
        for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)):
            for index in order:
                text = caller.generate(model, prompts[index], **self.greedily(model)).text()
                if self.repeats:
                    assert text == first[index]
