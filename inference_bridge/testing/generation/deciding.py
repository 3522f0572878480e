# SPDX-License-Identifier: Apache-2.0
"""Typed questions about a text (behaviours 4, 7 and 9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from ...decisions import Choice, Decision, Noul, Question, Score
from ...errors import GenerationTimeoutError, ModelClosedError, UnsupportedError
from ...model import TextModel
from ...types import Attachment, Message
from ..base import Begun, Contract
from ..callers import Sync

_QUESTIONS: Mapping[str, Question] = {
    "urgent": Noul("Is it urgent?", {"true": "at once", "false": "later"}),
    "team": Choice({"sales": None, "sales abroad": "other countries", "support": None}),
    "anger": Score(["calm", "cross", "furious"], "How angry?"),
}


class Deciding(Contract):
    """Answers of `decide`. If the model does not have the probabilities of tokens, `decide` must be refused."""

    behaviours: ClassVar[tuple[int, ...]] = (4, 7, 9)

    def test_answers_are_probabilities(self, model: TextModel, caller: Sync) -> None:
        decision = self._decision(model, caller, _QUESTIONS)
        if decision is None:
            return
        assert list(decision.answers) == list(_QUESTIONS)
        assert list(decision.nouls) == ["urgent"]
        assert list(decision.choices["team"].probabilities) == ["sales", "sales abroad", "support"]
        assert list(decision.scores["anger"].probabilities) == [0, 1, 2]
        assert decision.scores["anger"].legend == {0: "calm", 1: "cross", 2: "furious"}
        for answer in decision.answers.values():
            values = list(answer.probabilities.values())
            assert sum(values) == pytest.approx(1, abs=1e-6)
            assert all(0 <= value <= 1 for value in values)
            assert 0 <= answer.confidence <= 1
            assert answer.mass is None or 0 <= answer.mass <= 1
        team = decision.choices["team"]
        assert team.probabilities[team.choice] == max(team.probabilities.values())
        assert 0 <= decision.scores["anger"].score <= 2
        assert 0 <= decision.metrics.cached_tokens <= decision.metrics.prompt_tokens

    def test_an_answer_does_not_depend_on_the_other_questions(self, model: TextModel, caller: Sync) -> None:
        """It does not depend on the order and the names of the questions either."""
        whole = self._decision(model, caller, _QUESTIONS)
        if whole is None:
            return
        reordered = self._decision(model, caller, dict(reversed(list(_QUESTIONS.items()))))
        renamed = self._decision(model, caller, {name.upper(): asked for name, asked in _QUESTIONS.items()})
        assert reordered is not None
        assert renamed is not None
        for name in _QUESTIONS:
            self._assert_same_probabilities(whole[name], reordered[name])
            self._assert_same_probabilities(whole[name], renamed[name.upper()])

    def test_messages_and_mappings_are_states(self, model: TextModel, caller: Sync) -> None:
        asked = {"urgent": _QUESTIONS["urgent"]}
        # The first decision evaluates the whole prompt. The next two reuse its prefix, and may round differently.
        if self._decision(model, caller, asked, [Message("user", "Help!")]) is None:
            return
        of_messages = self._decision(model, caller, asked, [Message("user", "Help!")])
        assert of_messages is not None
        of_mappings = self._decision(model, caller, asked, [{"role": "user", "content": "Help!"}])
        assert of_mappings is not None
        self._assert_same_probabilities(of_messages["urgent"], of_mappings["urgent"])
        assert self._decision(model, caller, asked, {"subject": "Help!", "number": 3}) is not None

    @pytest.mark.parametrize(
        ("state", "questions", "options", "error"),
        [
            ("x", {}, {}, ValueError),
            ("x", "is it?", {}, TypeError),
            ("x", {"a": "is it?"}, {}, TypeError),
            ("x", {"a": {"type": "guess"}}, {}, ValueError),
            (object(), {"a": Noul("is it?")}, {}, TypeError),
            ("x", {"a": Noul("is it?")}, {"max_token": 3}, TypeError),
            ("x", {"a": Noul("is it?")}, {"timeout": 0}, ValueError),
            ("x", {"a": Noul("is it?")}, {"max_tokens": 3}, UnsupportedError),
            ([Message("user", ["x", Attachment("image/png", b"x")])], {"a": Noul("is it?")}, {}, UnsupportedError),
        ],
        ids=["no questions", "no mapping", "no question", "type", "state", "option", "value", "refused", "attachment"],
    )
    def test_what_is_wrong_is_told_at_the_call(
        self,
        model: TextModel,
        caller: Sync,
        state: Any,
        questions: Any,
        options: Mapping[str, Any],
        error: type[Exception],
    ) -> None:
        with Begun(model) as begun, pytest.raises(error):
            caller.call(model, "decide", state, questions, **options)
        assert begun.count == 0

    def test_a_timeout_is_that_of_the_whole_call_and_named_in_its_error(self, model: TextModel, caller: Sync) -> None:
        with pytest.raises((GenerationTimeoutError, UnsupportedError)) as raised:
            caller.call(model, "decide", "Help!", _QUESTIONS, timeout=1e-5)
        if isinstance(raised.value, UnsupportedError):
            self.check_refusal(model, raised.value, "decide")
        else:
            assert "timeout=1e-05" in str(raised.value)

    def test_a_closed_model_decides_nothing(self, caller: Sync) -> None:
        model = self.load()
        model.close()
        with pytest.raises(ModelClosedError):
            caller.call(model, "decide", "x", _QUESTIONS)

    def _decision(
        self, model: TextModel, caller: Sync, questions: Mapping[str, Question], state: Any = "Help!"
    ) -> Decision | None:
        """Return the answers. None: the model refuses `decide`, and names it in the error."""
        try:
            decision = caller.call(model, "decide", state, questions)
        except UnsupportedError as error:
            self.check_refusal(model, error, "decide")
            return None
        assert isinstance(decision, Decision)
        return decision

    def _assert_same_probabilities(self, one: Any, other: Any) -> None:
        """Assert that the probabilities of two answers are equal within the tolerance."""
        assert one.probabilities == pytest.approx(other.probabilities, abs=max(4 * self.tolerance, 1e-6))
