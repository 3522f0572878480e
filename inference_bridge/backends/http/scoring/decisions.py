# SPDX-License-Identifier: Apache-2.0
"""Typed questions on a server.

A server of a decision model answers them itself, at `/v1/systemone`. Any other llama-server or vLLM renders the chat
template, and the labels after that prompt are scored as in `classify`. Other servers are refused, because they return
neither the rendered prompt nor the probability of a label of any length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ....chat.formats import THINKING
from ....decisions import Answer, Choice, Decision, Noul, Question
from ....decisions.deciding import Deciding, answer, summed
from ....errors import ServerError, UnsupportedError
from ....types import BatchResult, GenerateMetrics
from ..facts import ServerFacts
from . import openai_decisions
from .classify import Classification, Task, token_ids

_ABSENT = frozenset({404, 405, 501})
"""The statuses with which servers answer if they do not have an endpoint, or have no decision model for it.

Status 400 is not among them: it is about one request, such as a question that the server does not support.
"""

_ANY_MODEL = "jev-latest"
"""The model name that the API's clients send by default. These servers need a name."""


class DecisionEndpoint:
    """The endpoints for decisions that a server may have. An attribute becomes False when the server refuses its path.

    Attributes:
        may_exist: The server may have /v1/systemone (System One API).
        may_be_openai: The server may have /v1/decisions (OpenAI API).
    """

    may_exist = True
    may_be_openai = True


class ServerDecision:
    """Plans the requests of one `decide`, and reads their answers.

    `steps` yields lists of requests. The requests of a list may run at the same time. When they have ended, the caller
    gives their results to `take`, and requests the next list. At the end `result` returns the answers.

    Args:
        facts: The properties of the server.
        work: The questions.
        endpoint: Whether the server has its own endpoint. It is updated here.
    """

    def __init__(self, facts: ServerFacts, work: Deciding, endpoint: DecisionEndpoint) -> None:
        self._facts = facts
        self._work = work
        self._endpoint = endpoint
        self._answers: dict[str, Answer] | None = None
        self._metrics: GenerateMetrics | None = None
        self._costs: list[GenerateMetrics] = []
        self._prompts: dict[int, str] = {}
        self._tokens: dict[int, list[int]] = {}
        self._scored: Classification | None = None
        self._errors: list[BaseException | None] = []

    @property
    def timeout(self) -> float | None:
        """Seconds that the whole call may take."""
        return self._work.config.timeout

    @property
    def spent(self) -> float:
        """Seconds since the call began."""
        return self._work.spent

    def result(self) -> Decision:
        """Return the answers, when all requests have ended."""
        if self._answers is not None:
            return Decision(self._answers, self._metrics or GenerateMetrics())
        assert self._scored is not None
        return self._work.decision(self._scored.results(), summed(self._costs, self.spent))

    def take(self, results: Sequence[BatchResult]) -> None:
        """Take how each request of the last list ended."""
        self._errors = [result.error for result in results]
        self._costs += [result.metrics for result in results]

    def steps(self) -> Iterator[list[Task]]:
        if self._endpoint.may_exist:
            yield [self._whole()]
            (error,) = self._errors
            if not (isinstance(error, ServerError) and error.status in _ABSENT):
                self._raise_first()
                return
            self._endpoint.may_exist = False
        facts = self._facts
        if not facts.server and self._endpoint.may_be_openai:
            yield [self._whole_of_openai()]
            (error,) = self._errors
            if not (isinstance(error, ServerError) and error.status in _ABSENT):
                self._raise_first()
                return
            self._endpoint.may_be_openai = False
        renders = facts.native or facts.server == "vllm"
        if not renders or "chat" not in facts.capabilities:
            why = "the server answers no such questions, and doesn't render chats: llama-server and vLLM do"
            raise UnsupportedError("decide", self._work.backend, why)
        if "reasoning" in facts.capabilities and not facts.reasons_if_asked:
            raise self._reasons()
        yield [self._template(place) for place in range(len(self._work.asks))]
        self._raise_first()
        prompts = [self._prompts[place] for place in range(len(self._work.asks))]
        if "reasoning" in facts.capabilities and not all(map(_is_past_reasoning, prompts)):
            raise self._reasons()
        labels = [ask.labels for ask in self._work.asks]
        self._scored = Classification(
            facts,
            prompts,
            labels,
            top=0,
            timeout=self._work.config.timeout,
            backend=self._work.backend,
            rendered=[self._tokens[place] for place in sorted(self._tokens)] or None,
        )
        for step in self._scored.steps():
            yield step
            self._raise_first()

    def _raise_first(self) -> None:
        for error in self._errors:
            if error is not None:
                raise error

    def _reasons(self) -> UnsupportedError:
        why = "the model reasons before it answers, and its chat template can't switch that off"
        return UnsupportedError("decide", self._work.backend, why)

    # ------------------------------------------------ the server's own answers

    def _whole(self) -> Task:
        """Return one request with all questions."""
        questions = {name: _fields(one) for name, one in self._work.questions.items()}
        private = tuple(ask.text for ask in self._work.asks)
        fields = {"model": _ANY_MODEL, "state": self._work.state, "questions": questions}
        return self._facts.api + "/systemone", fields, private, self._take

    def _take(self, found: Any) -> None:
        try:
            answers = found["answers"]
            self._answers = {name: _read(one, answers[name]) for name, one in self._work.questions.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServerError(f"the server's answer to the questions can't be read: {error!r}") from None
        usage = found.get("usage")
        counts = usage if isinstance(usage, Mapping) else {}
        tokens, cached = (counts.get(name) for name in ("input_tokens", "x_cached_tokens"))
        self._metrics = GenerateMetrics(
            prompt_tokens=tokens if isinstance(tokens, int) else 0,
            cached_tokens=cached if isinstance(cached, int) else 0,
        )

    def _whole_of_openai(self) -> Task:
        private = tuple(ask.text for ask in self._work.asks)
        return self._facts.api + "/decisions", openai_decisions.body(self._work), private, self._take_openai

    def _take_openai(self, found: Any) -> None:
        questions = self._work.questions
        try:
            self._answers = {
                name: _answer(one, openai_decisions.probabilities(one, given, self._work.backend), given)
                for (name, one), given in zip(questions.items(), found["answers"], strict=True)
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServerError(f"the server's answer to the questions can't be read: {error!r}") from None
        usage = found.get("usage")
        tokens = usage.get("input_tokens") if isinstance(usage, Mapping) else None
        self._metrics = GenerateMetrics(prompt_tokens=tokens if isinstance(tokens, int) else 0)

    # ------------------------------------------------ rendered by the server

    def _template(self, place: int) -> Task:
        text = self._work.asks[place].text

        def take(found: Any) -> None:
            prompt = found.get("prompt") if isinstance(found, Mapping) else None
            if not isinstance(prompt, str):
                raise ServerError("the server's answer to /apply-template has no prompt in it")
            self._prompts[place] = prompt

        def take_tokens(found: Any) -> None:
            self._tokens[place] = token_ids(found)
            pieces = found.get("token_strs")
            self._prompts[place] = "".join(map(str, pieces)) if isinstance(pieces, list) else ""

        options = dict(self._work.config.template_options or {})
        if "reasoning" in self._facts.capabilities:
            options = {"enable_thinking": False, "thinking": False} | options
        fields: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
        if options:
            fields["chat_template_kwargs"] = options
        if self._facts.server == "vllm":
            return "/tokenize", fields | {"return_token_strs": True}, (text,), take_tokens
        return "/apply-template", fields, (text,), take


def _is_past_reasoning(prompt: str) -> bool:
    end = prompt.rstrip("\n \u010a\u0120\u2581")  # line breaks and spaces, also as vocabularies write them
    return any(end.endswith(tags.closes) for tags in THINKING)


def _fields(asked: Question) -> dict[str, Any]:
    """Return a question as JSON."""
    if isinstance(asked, Noul):
        out: dict[str, Any] = {"type": "noul", "instructions": asked.instructions}
        return out | ({"criteria": dict(asked.criteria)} if asked.criteria else {})
    if isinstance(asked, Choice):
        return {"type": "choice", "instructions": asked.instructions, "criteria": dict(asked.options)}
    return {"type": "score", "instructions": asked.instructions, "criteria": list(asked.criteria)}


def _read(asked: Question, found: Mapping[str, Any]) -> Answer:
    """Read the server's answer to a question. Raises KeyError, TypeError or ValueError if it is not an answer."""
    if isinstance(asked, Noul):
        given: Sequence[Any] = [found["noul"], 1.0 - found["noul"]]
    elif isinstance(asked, Choice):
        given = [found["probabilities"][option] for option in asked.options]
    else:
        given = [found["probabilities"][str(level)] for level in range(len(asked.criteria))]
    return _answer(asked, given, found)


def _answer(asked: Question, given: Sequence[Any], found: Mapping[str, Any]) -> Answer:
    """Return the answer with the probabilities `given`, from the server's answer `found`.

    Raises:
        TypeError, ValueError: They are not probabilities that sum to 1.
    """
    values = [float(one) for one in given]
    total = math.fsum(values)
    if not all(math.isfinite(one) and 0 <= one <= 1 for one in values) or not 0.9 <= total <= 1.1:
        raise ValueError(f"the probabilities {values} are not probabilities that sum to 1")
    mass = found.get("x_mass")  # this package's own server sends it
    known = isinstance(mass, float) and 0 <= mass <= 1
    return answer(asked, [one / total for one in values], mass if known else None)
