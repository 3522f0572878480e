# SPDX-License-Identifier: Apache-2.0
"""Bodies and answers of /v1/systemone, as jevcompat's specification defines them: questions and answers by name.

Source: https://github.com/mandu5/jevcompat/blob/main/SPEC.md. Fields beyond it begin with `x_`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...decisions import Decision, Question, question
from ...decisions.deciding import State
from ..errors import RequestError
from ..fields import Fields

LATEST = "jev-latest"
"""The model that the API's own clients ask for by default."""

_FIELDS = frozenset({"type", "choice", "score", "noul", "legend", "probabilities"})
"""Fields of an answer in the API, except `confidence`, which not every type of answer has there."""


@dataclass(frozen=True)
class SystemOneRequest:
    """A request for answers to typed questions.

    Attributes:
        model: The model's name.
        state: What is judged.
        questions: The questions by their names.
    """

    model: str
    state: State
    questions: Mapping[str, Question]


def request(body: object) -> SystemOneRequest:
    """Read a body. Further fields of the body itself are ignored, as the API says.

    Raises:
        RequestError: A field is wrong. The error names it.
    """
    fields = Fields(body)
    model = fields.take("model", str, LATEST)
    state = fields.take_any("state")
    if not isinstance(state, str | dict | list):
        raise fields.wrong("state", "must be a string, an object or an array")
    given = fields.require("questions", dict)
    if not given:
        raise fields.wrong("questions", "must have at least one question")
    return SystemOneRequest(model, state, {name: _question(name, value) for name, value in given.items()})


def _question(name: str, value: object) -> Question:
    where = f"questions.{name}"
    if not name:
        raise RequestError(400, "the name of a question is empty", param="questions")
    if not isinstance(value, Mapping):
        raise RequestError(400, f"{where} must be an object", param=where)
    try:
        return question({key: item for key, item in value.items() if item is not None})
    except (TypeError, ValueError) as error:
        raise RequestError(400, f"{where}: {error}", param=where) from None


def answer(model: str, decision: Decision) -> dict[str, Any]:
    """Return the body of the answer."""
    return {
        "model": model,
        "answers": {name: _answer(one.to_dict()) for name, one in decision.answers.items()},
        "usage": {
            "input_tokens": decision.metrics.prompt_tokens,
            "output_tokens": 0,
            "x_cached_tokens": decision.metrics.cached_tokens,
        },
    }


def _answer(fields: Mapping[str, Any]) -> dict[str, Any]:
    known = _FIELDS if fields["type"] == "noul" else _FIELDS | {"confidence"}
    shown = {name if name in known else f"x_{name}": value for name, value in fields.items()}
    return {name: value for name, value in shown.items() if value is not None}
