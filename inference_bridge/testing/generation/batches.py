# SPDX-License-Identifier: Apache-2.0
"""Batches of prompts and conversations, and `classify` (behaviours 3, 4, 6 and 7)."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

import pytest

from ...errors import UnsupportedError
from ...model import TextModel
from ...types import BatchResult, GenerateMetrics, Token
from ..base import Begun, Contract
from ..callers import Async, Sync


class Batches(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (3, 4, 6)

    def test_results_are_in_the_prompts_order(self, model: TextModel, caller: Sync) -> None:
        prompts = self.prompts(self.slots(model) + 1)
        alone = [self.alone(model, prompt) for prompt in prompts]
        results = caller.call(model, "batch_generate", prompts, **self.greedily(model))
        assert len(results) == len(prompts)
        for result, expected in zip(results, alone, strict=True):
            assert isinstance(result, BatchResult)
            assert result.error is None
            assert isinstance(result.metrics, GenerateMetrics)
            assert result.metrics.generated_tokens > 0
            assert result.metrics.prompt_tokens == expected.metrics.prompt_tokens
            assert result.finish_reason == expected.finish_reason
            if self.repeats:
                assert result.text == expected.text

    def test_a_batch_of_none(self, model: TextModel, caller: Sync) -> None:
        assert caller.call(model, "batch_generate", []) == []
        assert caller.call(model, "classify", []) == []
        assert list(caller.stream_batch(model, [])) == []

    def test_tokens_come_with_their_prompt_s_index(self, model: TextModel, caller: Sync) -> None:
        prompts = self.prompts(3)
        alone = [self.alone(model, prompt) for prompt in prompts]
        found: dict[int, list[Token]] = {0: [], 1: [], 2: []}
        for index, token in caller.stream_batch(model, iter(prompts), **self.greedily(model)):
            found[index].append(token)
        for index, tokens in found.items():
            assert len(tokens) == len(alone[index].tokens)
            if self.repeats:
                assert "".join(token.text for token in tokens) == alone[index].text

    def test_one_that_fails_fails_no_other(self, model: TextModel, caller: Sync) -> None:
        prompts: list[Any] = [self.prompt, 3, self.prompt]  # an iterator's prompt is checked only when it is read
        batch = caller.stream_batch(model, iter(prompts), **self.greedily(model))
        indices = {index for index, _ in batch}
        assert indices == {0, 2}
        assert list(batch.errors) == [1]
        assert isinstance(batch.errors[1], TypeError)

    def test_prompts_are_read_only_as_they_are_needed(self, model: TextModel, caller: Sync) -> None:
        taken = 0

        def endless() -> Iterator[str]:
            nonlocal taken
            while True:
                taken += 1
                yield f"{self.prompt} {taken}"

        batch = caller.stream_batch(model, endless(), **self.greedily(model))
        assert taken == 0
        for _ in range(3):
            next(batch)
        assert taken <= 4 * model.parallel + 4
        batch.close()
        assert list(batch) == []
        self.is_free(model)

    def test_conversations_are_answered_in_their_order(self, model: TextModel, caller: Sync) -> None:
        if not self.chats(model):
            try:
                errors = [result.error for result in caller.call(model, "chat_batch", [self.asked()])]
            except UnsupportedError as error:
                errors = [error]
            assert all(isinstance(error, UnsupportedError) and "chat" in str(error) for error in errors)
            return
        asked = [self.asked(f"{self.question} {number}") for number in range(self.slots(model) + 1)]
        alone = [caller.chat(model, one, **self.greedily(model)).result() for one in asked]
        results = caller.call(model, "chat_batch", [*asked[:1], [], *asked[1:]], **self.greedily(model))
        assert isinstance(results.pop(1).error, ValueError), (
            "a conversation without messages must fail, and only that one"
        )
        assert len(results) == len(asked)
        for result, expected in zip(results, alone, strict=True):
            assert result.error is None
            assert result.metrics.prompt_tokens == expected.metrics.prompt_tokens
            if self.repeats:
                assert (result.text, result.reasoning) == (expected.text, expected.reasoning)
        assert caller.call(model, "chat_batch", []) == []

    def test_conversations_are_several(self, model: TextModel, caller: Sync) -> None:
        if not self.chats(model):
            return
        for wrong in (self.asked(), self.asked()[0], "hello", None, [self.question]):
            with Begun(model) as begun, pytest.raises(TypeError):
                caller.call(model, "chat_batch", wrong)
            assert begun.count == 0

    def test_prompts_from_an_asynchronous_iterable(self, model: TextModel) -> None:
        async def prompts() -> AsyncIterator[str]:
            for prompt in self.prompts(3):
                yield prompt

        caller = Async()
        found = {index for index, _ in caller.stream_batch(model, prompts(), **self.greedily(model, max_tokens=2))}
        caller.end()
        assert found == {0, 1, 2}

    def test_time_that_is_over_is_each_one_s_own_error(self, model: TextModel, caller: Sync) -> None:
        results = caller.call(model, "batch_generate", self.prompts(2), timeout=1e-6)
        for result in results:
            assert isinstance(result.error, TimeoutError)
            assert result.error.partial is not None  # type: ignore[attr-defined]
        self.is_free(model)

    def test_a_batch_that_is_left_holds_nothing(self, model: TextModel, caller: Sync) -> None:
        with caller.stream_batch(model, itertools.repeat(self.endless), max_tokens=-1) as batch:
            next(batch)
        self.is_free(model)


class Classifying(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (7,)

    def test_the_likeliest_token_of_each(self, model: TextModel, caller: Sync) -> None:
        prompts = self.prompts(3)
        results = caller.call(model, "classify", prompts)
        first = [self.alone(model, prompt, max_tokens=1).tokens[0] for prompt in prompts]
        assert len(results) == len(prompts)
        for result, expected in zip(results, first, strict=True):
            assert isinstance(result.token, Token)
            assert result.label is None
            assert result.scores is None
            assert result.logits is None
            if self.repeats:
                assert (result.token.id, result.token.text) == (expected.id, expected.text)

    def test_prompts_are_text(self, model: TextModel, caller: Sync) -> None:
        for wrong in ("one string", None, 3, ["a", 3]):
            with Begun(model) as begun, pytest.raises(TypeError):
                caller.call(model, "classify", wrong)
            assert begun.count == 0
