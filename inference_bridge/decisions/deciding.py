# SPDX-License-Identifier: Apache-2.0
"""How `decide` works: the prompt and the labels of each question, and how the labels' probabilities become an answer.

Each question has its own prompt: the state first, then the question. The state is the common prefix of all prompts of
a call, and an engine evaluates it once. An answer depends neither on the other questions nor on the order and names of
the questions.

Nothing is generated. The answer is computed from the probabilities of the labels as next tokens: "Yes" and "No", the
names of a choice's options, the numbers of a score's levels. See `engine.classify` for the probability of a label of
several tokens.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from .._concurrency.json_pieces import json_pieces
from ..errors import BridgeError, GenerationTimeoutError, UnsupportedError
from ..options import GenerateConfig
from ..types import ClassifyResult, GenerateMetrics, Message
from .questions import Answer, Choice, ChoiceAnswer, Decision, Noul, NoulAnswer, Question, ScoreAnswer, question

if TYPE_CHECKING:
    from ..model import TextModel

State: TypeAlias = str | Message | Mapping[str, Any] | Sequence[Any]
"""What the questions are about: a text, a conversation, or values that JSON can represent."""

_OPTIONS = ("timeout", "template_options")
_YES, _NO = "Yes", "No"

_MEDIA = frozenset({"attachment", "audio", "file", "image", "image_url", "input_audio", "input_image", "video"})
"""The types of content parts that are not text."""

_PAYLOADS = frozenset({"base64", "data", "file_id", "path", "source", "url"}) | _MEDIA
"""The keys under which such parts have their data. A mapping without them is a value, such as facts about a video."""


@dataclass(frozen=True, slots=True)
class Ask:
    """The texts of a question, as the model reads them.

    Attributes:
        state: The state as text. All questions of a call share it.
        question: The question with its options.
        labels: The answers whose probabilities are read, one for each option, in their order.
    """

    state: str
    question: str
    labels: tuple[str, ...]

    @property
    def text(self) -> str:
        """The state, then the question: the text of a user's message."""
        return f"{self.state}\n\n{self.question}"


class Deciding:
    """One call of `decide`: its questions, in the form in which a backend asks them.

    Args:
        state: What the questions are about.
        questions: The questions by their names.
        config: The options of the call, checked.
        backend: The backend's name, for errors.

    Raises:
        TypeError: The state or a question has a wrong type.
        ValueError: There are no questions, a question is wrong, or JSON can't represent the state.
        UnsupportedError: The state or a question has attachments or other media.
    """

    def __init__(
        self,
        state: State,
        questions: Mapping[str, Question | Mapping[str, Any]],
        config: GenerateConfig,
        backend: str,
    ) -> None:
        self._begun = time.monotonic()
        if not isinstance(questions, Mapping):
            raise TypeError(f"questions is a mapping of names to questions, not {type(questions).__name__}")
        if not questions:
            raise ValueError("questions is empty: ask at least one")
        for name in questions:
            if not isinstance(name, str):
                raise TypeError(f"the name of a question is a str, not {name!r}")
        self.backend = backend
        self.config = config
        self._state = state
        try:
            _check(state, "the state", backend)
        except RecursionError:
            raise ValueError("the state is nested too deep") from None
        self.questions = {name: _named(name, value) for name, value in questions.items()}
        for one in self.questions.values():
            criteria = one.criteria.values() if isinstance(one.criteria, Mapping) else [one.criteria]
            for part in (one.instructions, *criteria):
                _check(part, "a question", backend)
        shown = state if isinstance(state, str) else _json(state, "the state")
        self.asks = [Ask(shown, _shown(one), _labels(one)) for one in self.questions.values()]

    @property
    def state(self) -> Any:
        """The state: a text, or the value that its JSON represents."""
        return self._state if isinstance(self._state, str) else json.loads(self.asks[0].state)

    @property
    def spent(self) -> float:
        """Seconds since the call began."""
        return time.monotonic() - self._begun

    def check_time(self) -> None:
        """Raise GenerationTimeoutError if the timeout of the call is over."""
        if self.config.timeout is not None and self.spent >= self.config.timeout:
            raise self.timed_out()

    def timed_out(self) -> GenerationTimeoutError:
        """Return the error of a call that took longer than its timeout, which it names."""
        return GenerationTimeoutError(f"not finished within timeout={self.config.timeout} s")

    def remaining(self) -> float | None:
        """Return the seconds until the timeout of the call, above 0; None without one.

        Raises:
            GenerationTimeoutError: The call's time is over.
        """
        if self.config.timeout is None:
            return None
        left = self.config.timeout - self.spent
        if left <= 0:
            raise self.timed_out()
        return left

    def decision(self, results: Iterable[ClassifyResult], metrics: GenerateMetrics | None = None) -> Decision:
        """Return the answers.

        Args:
            results: For each of `asks`, the classification of its prompt; its scores are in the order of the labels.
            metrics: The metrics of the call, if they are known.
        """
        answers: dict[str, Answer] = {}
        for (name, asked), result in zip(self.questions.items(), results, strict=True):
            assert result.scores is not None
            answers[name] = answer(asked, list(result.scores.values()), result.mass)
        seconds = self.spent
        measured = metrics or GenerateMetrics(total_seconds=seconds, prefill_seconds=seconds)
        return Decision(answers, measured)


def answer(asked: Question, probabilities: Sequence[float], mass: float | None) -> Answer:
    """Return the answer to a question from the probabilities of its options, in their order."""
    if isinstance(asked, Noul):
        return NoulAnswer(probabilities[0], mass)
    if isinstance(asked, Choice):
        return ChoiceAnswer(dict(zip(asked.options, probabilities, strict=True)), mass)
    return ScoreAnswer(dict(enumerate(probabilities)), dict(enumerate(asked.criteria)), mass)


def checked(model: TextModel, config: GenerateConfig | None, options: Mapping[str, Any]) -> GenerateConfig:
    """Return the options of a call of `decide`, with the model's defaults. The call may set only `_OPTIONS`."""
    model._config(config, options, defaults=GenerateConfig())
    asked = (config or GenerateConfig()).with_options(options)
    for name, value in asked.set_fields().items():
        if name not in _OPTIONS:
            why = f"it generates nothing; its options are {' and '.join(_OPTIONS)}"
            raise UnsupportedError(f"{name}={value!r} in decide", model._name, why)
    return asked.over(model.defaults)


# ---------------------------------------------------------------- asking by classify

_LINE = "\nAnswer:"


def by_classify(model: TextModel, work: Deciding) -> Decision:
    """Ask the questions in plain text, without a chat template, with one call of `classify` for each set of labels."""
    results: dict[int, ClassifyResult] = {}
    try:
        for places, prompts, labels in _groups(work):
            found = model.classify(prompts, labels=labels, timeout=work.remaining())
            results.update(zip(places, found, strict=True))
    except (UnsupportedError, GenerationTimeoutError) as error:
        raise _failure(work, error) from error
    return work.decision(results[place] for place in sorted(results))


async def aby_classify(model: TextModel, work: Deciding) -> Decision:
    """The async variant of `by_classify`."""
    results: dict[int, ClassifyResult] = {}
    try:
        for places, prompts, labels in _groups(work):
            found = await model.aclassify(prompts, labels=labels, timeout=work.remaining())
            results.update(zip(places, found, strict=True))
    except (UnsupportedError, GenerationTimeoutError) as error:
        raise _failure(work, error) from error
    return work.decision(results[place] for place in sorted(results))


def _groups(work: Deciding) -> Iterable[tuple[list[int], list[str], list[str]]]:
    """Group the questions that have the same labels. Yields the places, the prompts and the labels of each group."""
    places: dict[tuple[str, ...], list[int]] = {}
    for place, ask in enumerate(work.asks):
        places.setdefault(ask.labels, []).append(place)
    for labels, group in places.items():
        yield group, [work.asks[place].text + _LINE for place in group], [f" {label}" for label in labels]


def _failure(work: Deciding, error: UnsupportedError | GenerationTimeoutError) -> BridgeError:
    """Return the error of the call, of which one `classify` failed: that one had only the rest of the timeout."""
    if isinstance(error, GenerationTimeoutError):
        return work.timed_out()
    return UnsupportedError("decide", work.backend, f"the probabilities of its answers are not known ({error})")


def summed(metrics: Iterable[GenerateMetrics], seconds: float) -> GenerateMetrics:
    """Return the sum of the metrics of several evaluations, which took `seconds` of wall-clock time together."""
    every = list(metrics)
    return GenerateMetrics(
        prompt_tokens=sum(one.prompt_tokens for one in every),
        cached_tokens=sum(one.cached_tokens for one in every),
        prefill_seconds=math.fsum(one.prefill_seconds for one in every),
        total_seconds=seconds,
        peak_memory_bytes=max((one.peak_memory_bytes for one in every), default=0),
        active_memory_bytes=max((one.active_memory_bytes for one in every), default=0),
    )


# ---------------------------------------------------------------- text


def _named(name: str, value: Question | Mapping[str, Any]) -> Question:
    try:
        return question(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"question {name!r}: {error}") from error


def _labels(asked: Question) -> tuple[str, ...]:
    if isinstance(asked, Noul):
        return _YES, _NO
    if isinstance(asked, Choice):
        return tuple(asked.options)
    return tuple(str(level) for level in range(len(asked.criteria)))


def _shown(asked: Question) -> str:
    """Return the question with its options, as the model reads it."""
    if isinstance(asked, Noul):
        lines = [f"Question: {_content(asked.instructions or 'Which of these is right?')}"]
        for label, key in ((_YES, "true"), (_NO, "false")):
            meaning = (asked.criteria or {}).get(key)
            if meaning is not None:
                lines.append(f"{label} means: {_content(meaning)}")
        return "\n".join([*lines, f"Answer {_YES} or {_NO}."])
    if isinstance(asked, Choice):
        lines = [f"Question: {_content(asked.instructions or 'Which of these options fits best?')}", "Options:"]
        for option, meaning in asked.options.items():
            lines.append(f"- {option}" if meaning is None else f"- {option}: {_content(meaning)}")
        return "\n".join([*lines, "Answer with one of the options, exactly as it is written here."])
    lines = [f"Question: {_content(asked.instructions or 'Which of these levels fits best?')}", "Levels:"]
    lines += [f"{level}: {_content(meaning)}" for level, meaning in enumerate(asked.criteria)]
    return "\n".join([*lines, "Answer with the number of the level."])


def _content(value: Any) -> str:
    return value if isinstance(value, str) else _json(value, "a question")


def _json(value: Any, where: str) -> str:
    try:
        return "".join(json_pieces(value, default=_plain, allow_nan=False))
    except TypeError as error:
        raise TypeError(f"{where} contains a value that JSON can't represent: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} contains a value that JSON can't represent: {error}") from None


def _plain(value: Any) -> Any:
    """Return a value that JSON can represent: messages become mappings."""
    if isinstance(value, Message):
        return value.to_dict()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return list(value)
    raise TypeError(f"JSON can't represent a {type(value).__name__}")


def _check(value: Any, where: str, backend: str) -> None:
    """Raise TypeError or UnsupportedError for a value that can't be shown to a model. Large values are not copied."""
    if isinstance(value, str | int | float) or value is None:
        return
    if isinstance(value, Message):
        if value.attachments:
            raise UnsupportedError("attachments in decide", backend, "it reads text only")
    elif isinstance(value, Mapping):
        kind = value.get("type")
        if isinstance(kind, str) and kind in _MEDIA and not _PAYLOADS.isdisjoint(value):
            raise UnsupportedError(f"{kind} parts in decide", backend, "it reads text only")
        for item in value.values():
            _check(item, where, backend)
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        for item in value:
            _check(item, where, backend)
    else:
        what = "a text, messages, or values that JSON can represent"
        raise TypeError(f"{where} contains a {type(value).__name__}: it must be {what}")
