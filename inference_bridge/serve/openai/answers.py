# SPDX-License-Identifier: Apache-2.0
"""Answers in OpenAI's format, as one object or as the chunks of a stream.

Source: https://platform.openai.com/docs/api-reference/chat/object and …/chat-streaming
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import GenerationError
from ...types import GenerateResult, Token, ToolCallDelta

MIN_LOGPROB = -9999.0
"""The log probability that OpenAI's API shows for very unlikely tokens. JSON has no negative infinity."""


def usage(groups: Iterable[Sequence[GenerateResult]]) -> dict[str, Any]:
    """Return the numbers of tokens that one request used.

    Args:
        groups: The results for each prompt. The prompt of a group is counted once.
    """
    prompt = cached = generated = reasoning = 0
    for results in groups:
        prompt += max(result.metrics.prompt_tokens for result in results)
        cached += max(result.metrics.cached_tokens for result in results)
        generated += sum(result.metrics.generated_tokens for result in results)
        reasoning += sum(token.kind == "reasoning" for result in results for token in result.tokens)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


@dataclass
class CommonFields:
    """The fields that all objects of one answer have in common.

    Attributes:
        model: The model's name.
        kind: The type of the objects.
        prefix: The beginning of the answer's id.
        id: The answer's id, which is set to a new one.
        created: When the answer was made, in seconds since the epoch.
    """

    model: str
    kind: str
    prefix: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"

    def with_choices(self, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return an object of the answer with these choices and further fields."""
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
            **more,
        }


def chat_choice(index: int, result: GenerateResult, top: int | None) -> dict[str, Any]:
    """Return one choice of a chat.completion.

    Args:
        index: The choice's index.
        result: The answer.
        top: Number of alternatives to show with each log probability. None: show no log probabilities.
    """
    calls = [call.to_dict() for call in result.tool_calls]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": result.text or (None if calls else ""),
        "refusal": None,
    }
    if result.reasoning:
        message["reasoning_content"] = result.reasoning
    if calls:
        message["tool_calls"] = calls
    shown = None if top is None else {"content": logprobs((one for one in result.tokens if one.kind == "text"), top)}
    return {"index": index, "message": message, "logprobs": shown, "finish_reason": result.finish_reason}


def chat_delta(token: Token) -> dict[str, Any] | None:
    """Return the delta of a chat.completion.chunk. None: the token shows nothing."""
    if token.kind == "tool_call":
        return None if token.tool_call is None else {"tool_calls": [_call_delta(token.tool_call)]}
    if not token.text:
        return None
    return {"reasoning_content" if token.kind == "reasoning" else "content": token.text}


def chat_chunk(
    index: int,
    delta: dict[str, Any],
    known: Sequence[dict[str, Any]] = (),
    finish_reason: str | None = None,
) -> dict[str, Any]:
    """Return one choice of a chat.completion.chunk.

    Args:
        index: The choice's index.
        delta: What the chunk adds.
        known: The log probabilities of its tokens, as `logprobs` returns them.
        finish_reason: Why the choice ended, in its last chunk.
    """
    shown = {"content": list(known)} if known else None
    return {"index": index, "delta": delta, "logprobs": shown, "finish_reason": finish_reason}


def text_choice(
    index: int, text: str, tokens: Sequence[Token], finish_reason: str | None, top: int | None, offset: int = 0
) -> dict[str, Any]:
    """Return one choice of a text_completion, or of a chunk of it.

    Args:
        index: The choice's index.
        text: Its text.
        tokens: The tokens of the text.
        finish_reason: Why the choice ended. None: it has not.
        top: Number of alternatives to show with each log probability. None: show no log probabilities.
        offset: Number of characters of the choice before the text.
    """
    shown = None if top is None else _parallel_logprobs(tokens, top, offset)
    return {"index": index, "text": text, "logprobs": shown, "finish_reason": finish_reason}


def _call_delta(delta: ToolCallDelta) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": delta.arguments}
    if delta.name is not None:
        function["name"] = delta.name
    call: dict[str, Any] = {"index": delta.index, "function": function}
    if delta.id is not None:
        call |= {"id": delta.id, "type": "function"}
    return call


def logprobs(tokens: Iterable[Token], top: int) -> list[dict[str, Any]]:
    """Return the log probabilities of the tokens that have one, each with those of the `top` most likely tokens."""
    return [
        _logprob(token.text, token.logprob)
        | {"top_logprobs": [_logprob(one.text, one.logprob) for one in token.top_logprobs[:top]]}
        for token in tokens
        if token.logprob is not None
    ]


def _logprob(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": _shown(logprob), "bytes": list(text.encode("utf-8", "surrogatepass"))}


def _shown(logprob: float) -> float:
    if math.isnan(logprob):
        raise GenerationError("the model computed NaN as the log probability of a token")
    return max(logprob, MIN_LOGPROB)


def _parallel_logprobs(tokens: Sequence[Token], top: int, offset: int) -> dict[str, Any]:
    """Return log probabilities as /v1/completions shows them: in parallel arrays."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [None if one.logprob is None else _shown(one.logprob) for one in tokens],
        "top_logprobs": [{one.text: _shown(one.logprob) for one in token.top_logprobs[:top]} for token in tokens],
        "text_offset": offsets,
    }
