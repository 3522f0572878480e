# SPDX-License-Identifier: Apache-2.0
"""The contract's values as JSON: what this package's server and its `http` backend send to each other.

OpenAI's API has no token ids and no logits, and lacks half of the options. So between two processes of this package,
requests, tokens and errors are sent in the contract's own terms. `PROTOCOL` is the version of paths and fields; a
client with another version uses OpenAI's API.
"""

from __future__ import annotations

import array
import base64
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from ... import decisions as deciding
from ...errors import (
    BridgeError,
    ContextLengthExceededError,
    GenerationError,
    GenerationTimeoutError,
    ModelLoadError,
    ModelNotFoundError,
    ServerError,
    ToolCallCutError,
    UnsupportedError,
)
from ...options import GenerateConfig
from ...types import ClassifyResult, GenerateMetrics, Message, Token, ToolCallDelta, TopLogprob

PROTOCOL = 1
"""The version of paths and fields. /v1/models has it as `bridge_protocol` of every model."""

PREFIX = "/bridge/"
"""The beginning of every path; the operation follows."""

ERROR = "bridge"
"""The key of the contract's error inside an error object of OpenAI's form."""


# ---------------------------------------------------------------- requests


def config_to_json(config: GenerateConfig) -> dict[str, Any]:
    """Return the options that are set."""
    value = config.set_fields()
    if config.tools is not None:
        value["tools"] = [tool if isinstance(tool, Mapping) else tool.to_dict() for tool in config.tools]
    if config.logit_bias is not None:
        value["logit_bias"] = {str(token): bias for token, bias in config.logit_bias.items()}
    return value


def config_from_json(value: Any) -> GenerateConfig:
    """Return the options. Raises TypeError or ValueError for what is wrong."""
    if not isinstance(value, Mapping):
        raise TypeError(f"config must be an object, not {type(value).__name__}")
    return GenerateConfig().with_options(value)


def message_to_json(message: Message, data: Mapping[int, bytes]) -> dict[str, Any]:
    """Return a message whose attachments contain their data.

    Args:
        message: The message.
        data: The content of each attachment, by its index among the attachments of the message.
    """
    value = message.to_dict()
    if data:
        place = 0
        for part in value["content"]:
            if part["type"] == "attachment":
                content = base64.b64encode(data[place]).decode("ascii")
                place += 1
                part.pop("path", None)
                part.pop("url", None)
                part["data"] = content
    return value


# ---------------------------------------------------------------- tokens


_LOWEST = -sys.float_info.max
"""Stands for a log probability of negative infinity, which JSON does not have. No other one is as low."""


def token_to_json(token: Token) -> dict[str, Any]:
    """Return a token: its text, and those of the other fields that are set."""
    value: dict[str, Any] = {"content": token.text}
    if token.id is not None:
        value["id"] = token.id
    if token.logprob is not None:
        value["logprob"] = max(token.logprob, _LOWEST)
    if token.top_logprobs:
        value["top"] = [[top.text, top.id, max(top.logprob, _LOWEST)] for top in token.top_logprobs]
    if token.kind != "text":
        value["kind"] = token.kind
    if token.tool_call is not None:
        call = token.tool_call
        value["call"] = [call.index, call.id, call.name, call.arguments]
    return value


def token_from_json(value: Mapping[str, Any]) -> Token:
    """Return a token. Raises LookupError, TypeError or ValueError if `value` is not a token."""
    call, logprob = value.get("call"), value.get("logprob")
    return Token(
        value["content"],
        value.get("id"),
        None if logprob is None else _logprob(logprob),
        tuple(TopLogprob(text, id, _logprob(known)) for text, id, known in value.get("top", ())),
        value.get("kind", "text"),
        None if call is None else ToolCallDelta(*call),
    )


def _logprob(value: float) -> float:
    return -math.inf if value == _LOWEST else value


# ---------------------------------------------------------------- other results


def classified_to_json(result: ClassifyResult) -> dict[str, Any]:
    return {
        "token": token_to_json(result.token),
        "logits": None if result.logits is None else _packed(result.logits),
        "label": result.label,
        "scores": None if result.scores is None else dict(result.scores),
        "mass": result.mass,
    }


def classified_from_json(value: Mapping[str, Any]) -> ClassifyResult:
    logits = value["logits"]
    return ClassifyResult(
        token_from_json(value["token"]),
        None if logits is None else _unpacked(logits),
        value["label"],
        value["scores"],
        value["mass"],
    )


def question_to_json(question: deciding.Question) -> dict[str, Any]:
    criteria = question.criteria
    if criteria is not None:
        criteria = dict(criteria) if isinstance(criteria, Mapping) else list(criteria)
    kind = type(question).__name__.lower()
    return {"type": kind, "instructions": question.instructions, "criteria": criteria}


def decision_to_json(decision: deciding.Decision) -> dict[str, Any]:
    def answer(one: deciding.Answer) -> dict[str, Any]:
        if isinstance(one, deciding.NoulAnswer):
            return {"noul": one.noul, "mass": one.mass}
        if isinstance(one, deciding.ChoiceAnswer):
            return {"choices": list(one.probabilities.items()), "mass": one.mass}
        levels = [[level, probability, one.legend[level]] for level, probability in one.probabilities.items()]
        return {"levels": levels, "mass": one.mass}

    answers = {name: answer(one) for name, one in decision.answers.items()}
    return {"answers": answers, "metrics": asdict(decision.metrics)}


def decision_from_json(value: Mapping[str, Any]) -> deciding.Decision:
    def answer(one: Mapping[str, Any]) -> deciding.Answer:
        mass = one["mass"]
        if "noul" in one:
            return deciding.NoulAnswer(one["noul"], mass)
        if "choices" in one:
            return deciding.ChoiceAnswer(dict(one["choices"]), mass)
        probabilities = {level: probability for level, probability, _ in one["levels"]}
        return deciding.ScoreAnswer(probabilities, {level: meaning for level, _, meaning in one["levels"]}, mass)

    answers = {name: answer(one) for name, one in value["answers"].items()}
    return deciding.Decision(answers, metrics_from_json(value["metrics"]))


_METRICS = frozenset(field.name for field in fields(GenerateMetrics))


def metrics_from_json(value: Mapping[str, Any]) -> GenerateMetrics:
    return GenerateMetrics(**{name: number for name, number in value.items() if name in _METRICS})


def _packed(values: Sequence[float]) -> str:
    """Return numbers as little-endian float32 in base64. Logits have this precision."""
    return base64.b64encode(_little(array.array("f", values)).tobytes()).decode("ascii")


def _unpacked(text: str) -> Sequence[float]:
    values = array.array("f")
    values.frombytes(base64.b64decode(text))
    return _little(values)


def _little(values: array.array[float]) -> array.array[float]:
    if sys.byteorder == "big":  # pragma: no cover - no machine of the tests
        values.byteswap()
    return values


# ---------------------------------------------------------------- errors

_PLAIN: Mapping[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        TypeError,
        ValueError,
        BridgeError,
        GenerationError,
        GenerationTimeoutError,
        ModelLoadError,
        ModelNotFoundError,
        ToolCallCutError,
    )
}


def error_to_json(error: Exception) -> dict[str, Any] | None:
    """Return an error of the contract; None for any other error."""
    if isinstance(error, UnsupportedError):
        return {"kind": "UnsupportedError", "feature": error.feature, "backend": error.backend, "why": error.why}
    if isinstance(error, ContextLengthExceededError):
        numbers = {"prompt_tokens": error.prompt_tokens, "context_length": error.context_length}
        return {"kind": "ContextLengthExceededError", **numbers, "at_least": error.at_least, "what": error.what}
    if isinstance(error, ServerError):
        return {"kind": "ServerError", "message": str(error), "status": error.status}
    for name in (kind.__name__ for kind in type(error).__mro__):
        if name in _PLAIN:
            return {"kind": name, "message": str(error)}
    return None


def error_from_json(answer: Any) -> Exception | None:
    """Return the contract's error in an error object, or in an answer that has one. None if it has no such error."""
    error = answer.get("error", answer) if isinstance(answer, Mapping) else None
    value = error.get(ERROR) if isinstance(error, Mapping) else None
    if not isinstance(value, Mapping):
        return None
    kind, message = value.get("kind"), str(value.get("message", ""))
    try:
        if kind == "UnsupportedError":
            return UnsupportedError(str(value["feature"]), str(value["backend"]), str(value["why"]))
        if kind == "ContextLengthExceededError":
            return ContextLengthExceededError(
                int(value["prompt_tokens"]),
                int(value["context_length"]),
                at_least=bool(value["at_least"]),
                what=str(value.get("what", "the prompt")),
            )
        if kind == "ServerError":
            return ServerError(message, status=value.get("status"))
    except (LookupError, TypeError, ValueError):
        return None
    plain = _PLAIN.get(str(kind))
    return None if plain is None else plain(message)
