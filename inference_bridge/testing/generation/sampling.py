# SPDX-License-Identifier: Apache-2.0
"""Choice of tokens: greedy decoding, seeds, the effect of each option, and concurrent streams (behaviours 7 and 9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest

from ...errors import UnsupportedError
from ...model import TextModel
from ..base import Contract
from ..callers import Sync


class Sampling(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (7, 9)

    # ------------------------------------------------ greedy

    def test_greedy_repeats(self, model: TextModel, caller: Sync) -> None:
        texts = {caller.generate(model, self.prompt, **self.greedily(model)).text() for _ in range(3)}
        if self.repeats:
            assert len(texts) == 1

    def test_nothing_set_is_greedy(self, model: TextModel, caller: Sync) -> None:
        """A wrapped model, which has no token ids, is not checked: it may have another default temperature."""
        if "token_ids" in model.capabilities and self.repeats:
            plain = caller.generate(model, self.prompt, max_tokens=self.length)
            assert plain.text() == self.alone(model).text

    def test_greedy_is_the_likeliest_token(self, model: TextModel, caller: Sync) -> None:
        if "logits" in model.capabilities:
            (result,) = caller.call(model, "classify", [self.prompt], return_logits=True)
            logits = [float(value) for value in result.logits]
            first: Any = next(caller.generate(model, self.prompt, **self.greedily(model, max_tokens=1)))
            assert logits[first.id] >= max(logits) - self.tolerance
        if "logprobs" in model.capabilities:
            tokens = list(caller.generate(model, self.prompt, **self.greedily(model, logprobs=3)))
            for token in tokens:
                assert token.logprob is not None
                assert token.logprob >= max(top.logprob for top in token.top_logprobs) - max(self.tolerance, 1e-6)

    # ------------------------------------------------ concurrent streams, reused prefixes

    def test_neighbours_change_no_number(self, model: TextModel) -> None:
        alone = self._logits_or_text(model)
        others = [model.generate(prompt, max_tokens=-1) for prompt in self.prompts(self.slots(model) - 1)]
        for other in others:
            next(other)
        together = self._logits_or_text(model)
        for other in others:
            other.close()
        self._assert_within_tolerance(alone, together)

    def test_what_ran_before_changes_no_number(self, model: TextModel) -> None:
        """A reused prefix, and a cache that was cut to a common prefix, give the same result as a new evaluation."""
        fresh = self._logits_or_text(model)
        for before in (self.prompt, self.prompt[:8], f"{self.prompt} and then some more", self.endless, self.prompt):
            model.generate(before, max_tokens=2).text()
            self._assert_within_tolerance(fresh, self._logits_or_text(model))

    # ------------------------------------------------ seeds

    def test_a_seed_repeats(self, model: TextModel, caller: Sync) -> None:
        if self._samples(model, caller):
            assert self._sample(model, caller, seed=11) == self._sample(model, caller, seed=11)

    def test_seeds_differ(self, model: TextModel, caller: Sync) -> None:
        if self._samples(model, caller):
            assert len({self._sample(model, caller, seed=seed) for seed in range(5)}) > 1

    def test_no_seed_is_a_new_one_each_time(self, model: TextModel, caller: Sync) -> None:
        if self.honours(model, "temperature"):
            assert len({self._sample(model, caller) for _ in range(5)}) > 1

    def test_a_seed_repeats_whatever_the_neighbours(self, model: TextModel, caller: Sync) -> None:
        if not self._samples(model, caller):
            return
        alone = self._sample(model, caller, seed=11)
        others = [
            caller.generate(model, prompt, max_tokens=-1, temperature=self.temperature)
            for prompt in self.prompts(self.slots(model) - 1)
        ]
        options: dict[str, Any] = {"max_tokens": self.length, "temperature": self.temperature, "seed": 11}
        text = ""
        for token in caller.generate(model, self.prompt, **options):
            text += token.text
            for other in others:
                next(other, None)
        assert text == alone
        for other in others:
            other.close()

    # ------------------------------------------------ the effect of each option

    @pytest.mark.parametrize(("option", "value"), [("top_k", 1), ("top_p", 1e-6), ("min_p", 1.0)], ids=str)
    def test_cutting_all_but_the_likeliest_is_greedy(
        self, model: TextModel, caller: Sync, option: str, value: Any
    ) -> None:
        if not self.honoured(model, lambda **kw: caller.generate(model, self.prompt, **kw), option, value):
            return
        greedy = self.alone(model).text
        for seed in range(2):
            own = {"seed": seed} if self.honours(model, "seed") else {}
            text = self._sample(model, caller, **own, **{option: value})
            if self.repeats:
                assert text == greedy

    @pytest.mark.parametrize("option", ["top_k", "top_p", "min_p", "repeat_penalty"])
    def test_zero_switches_off(self, model: TextModel, caller: Sync, option: str) -> None:
        if not self.honoured(model, lambda **kw: caller.generate(model, self.prompt, **kw), option, 0):
            return
        if self._samples(model, caller):
            assert self._sample(model, caller, seed=3, **{option: 0}) == self._sample(model, caller, seed=3)

    @pytest.mark.parametrize("option", ["repeat_penalty", "presence_penalty", "frequency_penalty"])
    def test_a_penalty_keeps_from_repeating(self, model: TextModel, caller: Sync, option: str) -> None:
        value = self.penalties[option]
        if not self.honoured(model, lambda **kw: caller.generate(model, self.prompt, **kw), option, value):
            return
        plain = caller.generate(model, self.repetitive, **self.greedily(model)).text()
        penalised = caller.generate(model, self.repetitive, **self.greedily(model, **{option: value})).text()
        assert penalised != plain, f"{option}={value} does not change the text: the option seems to be ignored"

    def test_a_bias_keeps_a_token_out(self, model: TextModel, caller: Sync) -> None:
        if not self.honoured(model, lambda **kw: caller.generate(model, self.prompt, **kw), "logit_bias", {5: -1.0}):
            return
        first = self.alone(model).tokens[0].id
        if first is None:
            return
        barred = caller.generate(model, self.prompt, **self.greedily(model, logit_bias={first: -100.0})).result()
        assert first not in [token.id for token in barred.tokens]
        neutral = caller.generate(model, self.prompt, **self.greedily(model, logit_bias={first: 0.0}))
        if self.repeats:
            assert neutral.text() == self.alone(model).text

    def test_a_minimum_of_tokens(self, model: TextModel, caller: Sync) -> None:
        if not self.honoured(model, lambda **kw: caller.generate(model, self.prompt, **kw), "min_tokens", 2):
            return
        for options in ({"min_tokens": 3, "max_tokens": 2}, {"min_tokens": 2, "json_schema": self.schema}):
            with pytest.raises(ValueError, match="min_tokens"):
                caller.generate(model, self.prompt, **options)
        first = self.alone(model).tokens[0].id
        if first is None or not self.honours(model, "stop_tokens"):
            return
        ended = caller.generate(model, self.prompt, **self.greedily(model, stop_tokens=[first])).result()
        assert ended.tokens == ()
        later = caller.generate(model, self.prompt, **self.greedily(model, stop_tokens=[first], min_tokens=3)).result()
        assert len(later.tokens) >= 3
        assert first not in [token.id for token in later.tokens[:3]]

    # ------------------------------------------------ helpers

    def _samples(self, model: TextModel, caller: Sync) -> bool:
        """Return whether a temperature and a seed can be set. If not, check that they are refused."""

        def call(**options: Any) -> Any:
            return caller.generate(model, self.prompt, **options)

        both = [self.honoured(model, call, "temperature", 0.5), self.honoured(model, call, "seed", 1)]
        return all(both)

    def _sample(self, model: TextModel, caller: Sync, **options: Any) -> str:
        options |= {"max_tokens": self.length, "temperature": self.temperature}
        return caller.generate(model, self.prompt, **options).text()

    def _logits_or_text(self, model: TextModel) -> Mapping[Any, float] | str:
        """Return the logits for the prompt if the model has them, else log probabilities, else the greedy text."""
        if "logits" in model.capabilities:
            (result,) = model.classify([self.prompt], return_logits=True)
            assert result.logits is not None
            return dict(enumerate(float(value) for value in result.logits))
        if "logprobs" in model.capabilities:
            first = next(model.generate(self.prompt, **self.greedily(model, max_tokens=1, logprobs=5)))
            return {(top.id, top.text): top.logprob for top in first.top_logprobs}
        return model.generate(self.prompt, **self.greedily(model)).text()

    def _assert_within_tolerance(self, expected: Mapping[Any, float] | str, found: Mapping[Any, float] | str) -> None:
        if isinstance(expected, str) or isinstance(found, str):
            if self.repeats:
                assert found == expected
            return
        common = expected.keys() & found.keys()
        assert common
        furthest = max(abs(expected[key] - found[key]) for key in common)
        assert furthest <= self.tolerance, f"a value changed by {furthest}, but the tolerance is {self.tolerance}"


class Logprobs(Contract):
    """Log probabilities and logits: a model that does not declare them must refuse them (behaviour 9)."""

    behaviours: ClassVar[tuple[int, ...]] = (9,)

    def test_log_probabilities(self, model: TextModel, caller: Sync) -> None:
        if not self.honoured(model, _generating(self, model, caller), "logprobs", 3):
            return
        tokens = list(caller.generate(model, self.prompt, **self.greedily(model, logprobs=3)))
        for token in tokens:
            assert token.logprob is not None
            assert token.logprob <= 1e-6
            assert len(token.top_logprobs) == 3
            values = [top.logprob for top in token.top_logprobs]
            assert values == sorted(values, reverse=True)
            assert token.logprob <= values[0] + 1e-6
            if "token_ids" in model.capabilities and self.lists_ids:
                assert all(top.id is not None for top in token.top_logprobs)

    def test_no_log_probabilities_unless_asked(self, model: TextModel, caller: Sync) -> None:
        for token in caller.generate(model, self.prompt, **self.greedily(model)):
            assert token.logprob is None
            assert token.top_logprobs == ()

    def test_logits_of_classify(self, model: TextModel, caller: Sync) -> None:
        if "logits" not in model.capabilities:
            with pytest.raises(UnsupportedError, match="return_logits"):
                caller.call(model, "classify", [self.prompt], return_logits=True)
            return
        with_logits, without = (
            caller.call(model, "classify", [self.prompt], return_logits=asked)[0] for asked in (True, False)
        )
        assert without.logits is None
        assert len(with_logits.logits) == model.info.vocab_size
        assert with_logits.token.id == without.token.id


def _generating(suite: Contract, model: TextModel, caller: Sync) -> Callable[..., Any]:
    return lambda **options: caller.generate(model, suite.prompt, **options)
