# SPDX-License-Identifier: Apache-2.0
"""Bodies and answers of /v1/decisions, in the format of OpenAI's `client.decisions`.

Source: openai/resources/decisions.py and openai/types/decision*.py of https://github.com/openai/openai-python
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...decisions import Answer, Choice, ChoiceAnswer, Decision, Noul, NoulAnswer, Question, Score
from ...decisions.deciding import State
from ..errors import RequestError
from ..fields import Fields

IGNORED = frozenset({"prompt_cache_key", "prompt_cache_options", "safety_identifier"})
"""Fields that change nothing here: prefixes are always cached."""

MAX_QUESTIONS = 400

_ROLES = ("user", "system", "developer", "assistant")
_TEXTS = ("input_text", "output_text", "text")
_HINTS = frozenset({"prompt_cache_breakpoint"})


@dataclass(frozen=True)
class AskedQuestion:
    """A question of a request, and the values that its answer repeats.

    Attributes:
        name: The question's name, if it has one.
        question: The question itself.
        values: The options of a choice as the client wrote them, strings or booleans; the labels of a score.
    """

    name: str | None
    question: Question
    values: Sequence[str | bool] = ()


@dataclass(frozen=True)
class DecisionsRequest:
    """A request for answers to typed questions.

    Attributes:
        model: The model's name.
        state: What is judged.
        questions: The questions in their order.
    """

    model: str
    state: State
    questions: Sequence[AskedQuestion]


def request(body: object) -> DecisionsRequest:
    """Read a body.

    Raises:
        RequestError: A field is wrong or not supported. The error names it.
    """
    fields = Fields(body, IGNORED)
    model = fields.require("model", str)
    given = fields.take_any("input")
    if isinstance(given, list) and given:
        state: State = [_item(value, f"input[{place}].") for place, value in enumerate(given)]
    elif isinstance(given, str):
        state = given
    else:
        raise fields.wrong("input", "must be a string or an array of messages and calls")
    questions = fields.require("questions", list)
    if not 1 <= len(questions) <= MAX_QUESTIONS:
        raise fields.wrong("questions", f"must have from 1 to {MAX_QUESTIONS} questions")
    fields.end()
    return DecisionsRequest(model, state, [_question(one, f"questions[{at}].") for at, one in enumerate(questions)])


# ---------------------------------------------------------------- what is judged


def _item(value: object, where: str) -> dict[str, Any]:
    """Return a message, a call or a call's output as it is shown to the model."""
    fields = Fields(value, where=where)
    kind = fields.take("type", str, "message")
    if kind == "message":
        role = fields.require("role", str)
        if role not in _ROLES:
            raise fields.wrong("role", f"must be one of {', '.join(_ROLES)}")
        fields.take("phase", str)
        shown: dict[str, Any] = {"role": role, "content": _content(fields, "content")}
    elif kind in ("function_call", "custom_tool_call"):
        content = "arguments" if kind == "function_call" else "input"
        shown = {"type": kind, "name": fields.require("name", str), content: fields.require(content, str)}
    elif kind in ("function_call_output", "custom_tool_call_output"):
        shown = {"type": kind, "output": _content(fields, "output")}
    else:
        raise fields.wrong("type", "must be a message, a call or the output of a call")
    if kind != "message":
        shown["call_id"] = fields.require("call_id", str)
        for name in ("id", "namespace", "status"):
            fields.take(name, str)
    fields.end()
    return shown


def _content(fields: Fields, name: str) -> Any:
    """Read a field that is a text or an array of parts. A single part is returned without its array."""
    given = fields.take_any(name)
    if isinstance(given, str):
        return given
    if not isinstance(given, list) or not given:
        raise fields.wrong(name, "must be a string or an array of parts")
    parts = [_part(fields, name, place, part) for place, part in enumerate(given)]
    return parts[0] if len(parts) == 1 else parts


def _part(outer: Fields, name: str, place: int, value: object) -> Any:
    fields = Fields(value, _HINTS, where=f"{name}[{place}].")
    kind = fields.require("type", str)
    if kind in _TEXTS:
        found: Any = fields.require("text", str)
    elif kind == "refusal":
        found = fields.require("refusal", str)
    elif kind == "input_json":
        found = fields.take_any("data")
        if not isinstance(found, dict | list):
            raise fields.wrong("data", "must be an object or an array")
    else:
        raise outer.wrong(f"{name}[{place}].type", f"{kind!r} is not supported: decisions read text and JSON only")
    fields.end()
    return found


# ---------------------------------------------------------------- questions


def _question(value: object, where: str) -> AskedQuestion:
    fields = Fields(value, where=where)
    kind = fields.require("type", str)
    name = fields.take("name", str)
    instructions = _content(fields, "instructions")
    try:
        if kind == "predicate":
            asked = AskedQuestion(name, Noul(_statement(instructions)))
        elif kind == "choice":
            values, options = _options(fields, where)
            asked = AskedQuestion(name, Choice(options, instructions), values)
        elif kind == "score":
            labels, levels = _levels(fields, where)
            asked = AskedQuestion(name, Score(levels, instructions), labels)
        else:
            raise fields.wrong("type", 'must be "predicate", "choice" or "score"')
    except (TypeError, ValueError) as error:
        raise RequestError(400, f"{where.rstrip('.')}: {error}", param=where.rstrip(".")) from None
    fields.end()
    return asked


def _statement(instructions: Any) -> str:
    """Return the yes/no question for a predicate, which is a statement. The question is whether it is true."""
    text = instructions if isinstance(instructions, str) else json.dumps(instructions, ensure_ascii=False)
    return f"Is this true? {text}" if text.strip() else ""


def _options(fields: Fields, where: str) -> tuple[list[str | bool], dict[str, str | None]]:
    """Return the options as the client wrote them, and their labels with their descriptions."""
    values: list[str | bool] = []
    options: dict[str, str | None] = {}
    for place, given in enumerate(fields.require("choices", list)):
        one = Fields(given, where=f"{where}choices[{place}].")
        value = one.take_any("value")
        if not isinstance(value, str | bool):
            raise one.wrong("value", "must be a string, true or false")
        label = value if isinstance(value, str) else str(value).lower()
        if label in options:
            raise one.wrong("value", f"{label!r} is the label of another choice")
        options[label] = one.take("description", str)
        values.append(value)
        one.end()
    return values, options


def _levels(fields: Fields, where: str) -> tuple[list[str | bool], list[str]]:
    """Return the labels of the levels, and the text that the model is shown for each."""
    labels: list[str | bool] = []
    levels: list[str] = []
    for place, given in enumerate(fields.require("levels", list)):
        one = Fields(given, where=f"{where}levels[{place}].")
        label, meaning = one.require("label", str), one.take("description", str)
        labels.append(label)
        levels.append(f"{label}: {meaning}" if meaning else label)
        one.end()
    return labels, levels


# ---------------------------------------------------------------- answers


def answer(asked: DecisionsRequest, decision: Decision) -> dict[str, Any]:
    """Return the body of the answer."""
    metrics = decision.metrics
    return {
        "model": asked.model,
        "answers": [_answer(one, found) for one, found in zip(asked.questions, decision.answers.values(), strict=True)],
        "usage": {
            "input_tokens": metrics.prompt_tokens,
            "input_tokens_details": {"cached_tokens": metrics.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": metrics.prompt_tokens,
        },
    }


def _answer(asked: AskedQuestion, found: Answer) -> dict[str, Any]:
    shown = _of_kind(asked, found)
    return {**shown, "name": asked.name} | ({} if found.mass is None else {"x_mass": found.mass})


def _of_kind(asked: AskedQuestion, found: Answer) -> Mapping[str, Any]:
    if isinstance(found, NoulAnswer):
        return {"type": "predicate", "probability": found.noul}
    each = list(zip(asked.values, found.probabilities.values(), strict=True))
    if isinstance(found, ChoiceAnswer):
        likeliest = asked.values[list(found.probabilities).index(found.choice)]
        values = [{"value": value, "probability": probability} for value, probability in each]
        return {"type": "choice", "choice": likeliest, "confidence": found.confidence, "probabilities": values}
    levels = [
        {"label": label, "value": level, "probability": probability} for level, (label, probability) in enumerate(each)
    ]
    return {"type": "score", "score": found.score, "confidence": found.confidence, "probabilities": levels}
