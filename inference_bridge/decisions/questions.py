# SPDX-License-Identifier: Apache-2.0
"""Typed questions about a text, and their answers as probabilities: the arguments and results of `TextModel.decide`.

The names are those of the TypeSafe System One API, which LangChain (`langchain_core.decisions`) and
llama-server (`/v1/systemone`) use too: a `Noul` is a yes/no question, a `Choice` has one answer out of a fixed
set, and a `Score` places the text on an ordered scale.

Every answer has these properties:

probabilities
    The probability of each option, given that the answer is one of them. They sum to 1.
confidence
    `(p - 1/n) / (1 - 1/n)`, where p is the probability of the most likely of n options: 0 where all options are
    equally likely, 1 where one of them is certain. The formula is the same for all three types, and for every
    backend. It is also 1 where there is only one option.
mass
    The probability that the model's answer begins with any of the options, from 0 to 1. If the mass is small, the model
    would probably give another answer, so the probabilities mean little. None if a server returns only the
    probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from ..types import GenerateMetrics

Content: TypeAlias = str | Mapping[str, Any] | Sequence[Any]
"""A text, or a JSON object or array, which is shown to the model as JSON."""

_A = TypeVar("_A")


# ---------------------------------------------------------------- questions


@dataclass(frozen=True, slots=True)
class Noul:
    """A yes/no question.

    Attributes:
        instructions: The whole question: the model does not see the question's name. It may be empty if there are
            criteria.
        criteria: When the answer is yes, under "true", and when it is no, under "false". Either may be left out.

    Raises:
        TypeError: `instructions` is not a text, an object or an array, or `criteria` is not a mapping.
        ValueError: `instructions` is empty and there are no criteria, or `criteria` has another key.
    """

    instructions: Content
    criteria: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_instructions("noul", self.instructions, required=not self.criteria)
        if self.criteria is None:
            return
        if not isinstance(self.criteria, Mapping):
            raise TypeError(f"the criteria of a noul are a mapping, not {type(self.criteria).__name__}")
        for key in self.criteria:
            if key not in ("true", "false"):
                raise ValueError(f"the criteria of a noul have the keys 'true' and 'false', not {key!r}")


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with one answer out of a fixed set.

    Attributes:
        criteria: The options, each with its description or None; a sequence of options has no descriptions. The name
            of an option may have any length: the probability of the whole name is computed.
        instructions: The question. It may be left out if the options are clear without it.

    Raises:
        TypeError: `criteria` is not a mapping or a sequence of str, or `instructions` has a wrong type.
        ValueError: There are no options, an option is blank, or an option is listed twice.
    """

    criteria: Mapping[str, Any] | Sequence[str]
    instructions: Content = ""

    def __post_init__(self) -> None:
        _check_instructions("choice", self.instructions)
        if isinstance(self.criteria, str) or not isinstance(self.criteria, Mapping | Sequence):
            raise TypeError(f"the criteria of a choice are a mapping or a sequence, not {self.criteria!r}")
        options = list(self.criteria)
        for option in options:
            if not isinstance(option, str):
                raise TypeError(f"an option of a choice is a str, not {option!r}")
            if not option.strip():
                raise ValueError("an option of a choice is blank: give it a name")
        if not options:
            raise ValueError("a choice has no options: name at least one in its criteria")
        if len(set(options)) < len(options):
            raise ValueError("a choice lists an option twice")

    @property
    def options(self) -> Mapping[str, Any]:
        """The options in their order, each with its description or None."""
        return self.criteria if isinstance(self.criteria, Mapping) else dict.fromkeys(self.criteria)


@dataclass(frozen=True, slots=True)
class Score:
    """A question whose answer is a level of an ordered scale.

    Attributes:
        criteria: The descriptions of the levels, from level 0 on; at least two.
        instructions: The question. It may be left out if the levels are clear without it.

    Raises:
        TypeError: `criteria` is not a sequence, or `instructions` has a wrong type.
        ValueError: There are fewer than two levels, or a level is None.
    """

    criteria: Sequence[Any]
    instructions: Content = ""

    def __post_init__(self) -> None:
        _check_instructions("score", self.instructions)
        if isinstance(self.criteria, str | Mapping) or not isinstance(self.criteria, Sequence):
            raise TypeError(f"the criteria of a score are a sequence of levels, not {self.criteria!r}")
        if len(self.criteria) < 2:
            raise ValueError("a score needs at least two levels in its criteria")
        if any(level is None for level in self.criteria):
            raise ValueError("a level of a score has no description: say what it means")


Question: TypeAlias = Noul | Choice | Score


def _check_instructions(kind: str, value: Any, *, required: bool = False) -> None:
    if isinstance(value, bytes) or not isinstance(value, str | Mapping | Sequence):
        what = "a text, a mapping or a sequence"
        raise TypeError(f"the instructions of a {kind} are {what}, not {type(value).__name__}")
    if required and (not value or (isinstance(value, str) and not value.strip())):
        raise ValueError(f"the instructions of a {kind} are empty: write the question there")


_FIELDS = ("type", "instructions", "criteria")


def question(value: Question | Mapping[str, Any]) -> Question:
    """Return a question from its JSON form: a mapping with type, criteria and instructions.

    Args:
        value: A mapping, or a question, which is returned unchanged.

    Raises:
        TypeError: It is neither a question nor a mapping, or a part of it has a wrong type.
        ValueError: Its type is not "noul", "choice" or "score", a field is unknown, or a field is missing.
    """
    if isinstance(value, Noul | Choice | Score):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"a question is a Noul, a Choice, a Score or a mapping, not {type(value).__name__}")
    kind = value.get("type")
    if kind not in ("noul", "choice", "score"):
        raise ValueError(f"the type of a question is 'noul', 'choice' or 'score', not {kind!r}")
    for name in value:
        if name not in _FIELDS:
            raise ValueError(f"a question has no field {name!r}: it has {', '.join(_FIELDS)}")
    if kind == "noul":
        return Noul(value.get("instructions", ""), value.get("criteria"))
    if "criteria" not in value:
        raise ValueError(f"a {kind} needs criteria")
    return (Choice if kind == "choice" else Score)(value["criteria"], value.get("instructions", ""))


# ---------------------------------------------------------------- answers


@dataclass(frozen=True, slots=True)
class NoulAnswer:
    """The answer to a `Noul`.

    Attributes:
        noul: The probability of yes.
        mass: See the module.
    """

    noul: float
    mass: float | None = None

    @property
    def probabilities(self) -> Mapping[str, float]:
        """The probabilities of "true" and "false"."""
        return {"true": self.noul, "false": 1.0 - self.noul}

    @property
    def confidence(self) -> float:
        """How certain the most likely option is: see the module."""
        return confidence(self.probabilities)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of the answer: the fields of the System One API, `confidence` and `mass`."""
        return {"type": "noul", "noul": self.noul, "confidence": self.confidence, "mass": self.mass}


@dataclass(frozen=True, slots=True)
class ChoiceAnswer:
    """The answer to a `Choice`.

    Attributes:
        probabilities: The probability of each option, in the order of the question.
        mass: See the module.
    """

    probabilities: Mapping[str, float]
    mass: float | None = None

    @property
    def choice(self) -> str:
        """The most likely option; the first one if several are equally likely."""
        return max(self.probabilities, key=lambda option: self.probabilities[option])

    @property
    def confidence(self) -> float:
        """How certain the most likely option is: see the module."""
        return confidence(self.probabilities)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of the answer: the fields of the System One API and `mass`."""
        told = {"type": "choice", "choice": self.choice, "probabilities": dict(self.probabilities)}
        return told | {"confidence": self.confidence, "mass": self.mass}


@dataclass(frozen=True, slots=True)
class ScoreAnswer:
    """The answer to a `Score`.

    Attributes:
        probabilities: The probability of each level, by its number.
        legend: The description of each level, by its number.
        mass: See the module.
    """

    probabilities: Mapping[int, float]
    legend: Mapping[int, Any]
    mass: float | None = None

    @property
    def score(self) -> float:
        """The expected level: the sum of each level's number times its probability."""
        return sum(level * probability for level, probability in self.probabilities.items())

    @property
    def confidence(self) -> float:
        """How certain the most likely option is: see the module."""
        return confidence(self.probabilities)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of the answer: the fields of the System One API and `mass`."""
        return {
            "type": "score",
            "score": self.score,
            "legend": {str(level): meaning for level, meaning in self.legend.items()},
            "probabilities": {str(level): probability for level, probability in self.probabilities.items()},
            "confidence": self.confidence,
            "mass": self.mass,
        }


Answer: TypeAlias = NoulAnswer | ChoiceAnswer | ScoreAnswer


def confidence(probabilities: Mapping[Any, float]) -> float:
    """Return how certain the most likely option is, from 0 to 1. The module's docstring has the formula.

    Args:
        probabilities: The probability of each option.
    """
    count = len(probabilities)
    if count < 2:
        return 1.0
    return min(max((max(probabilities.values()) - 1 / count) / (1 - 1 / count), 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Decision:
    """The answers to all questions of one call of `decide`.

    Attributes:
        answers: The answers by the names of their questions, in the order of the questions.
        metrics: The metrics of the call. `prompt_tokens` is the sum over the prompts of all evaluations, and
            `cached_tokens` is the part of it that was not evaluated again. Both are 0 if a server does not return them.
            No token is generated.
    """

    answers: Mapping[str, Answer]
    metrics: GenerateMetrics = field(default_factory=GenerateMetrics)

    def __getitem__(self, name: str) -> Answer:
        return self.answers[name]

    @property
    def nouls(self) -> dict[str, NoulAnswer]:
        """The answers to nouls."""
        return self._of(NoulAnswer)

    @property
    def choices(self) -> dict[str, ChoiceAnswer]:
        """The answers to choices."""
        return self._of(ChoiceAnswer)

    @property
    def scores(self) -> dict[str, ScoreAnswer]:
        """The answers to scores."""
        return self._of(ScoreAnswer)

    def _of(self, kind: type[_A]) -> dict[str, _A]:
        return {name: answer for name, answer in self.answers.items() if isinstance(answer, kind)}
