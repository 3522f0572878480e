# SPDX-License-Identifier: Apache-2.0
"""Results of the contract, as OpenAI's answers: whole, or in the chunks of a stream.

Source: https://platform.openai.com/docs/api-reference/chat/object and …/chat-streaming
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...types import GenerateResult, Token, ToolCallDelta


def usage(groups: Iterable[Sequence[GenerateResult]]) -> dict[str, Any]:
    """Return the tokens that one request used.

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
class Frame:
    """What every object of one answer has in common."""

    model: str
    kind: str
    prefix: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"

    def holding(self, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
            **more,
        }


def chat_choice(index: int, result: GenerateResult, show_logprobs: bool) -> dict[str, Any]:
    """One choice of a chat.completion."""
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
    shown = {"content": logprobs(token for token in result.tokens if token.kind == "text")} if show_logprobs else None
    return {"index": index, "message": message, "logprobs": shown, "finish_reason": result.finish_reason}


def chat_delta(token: Token) -> dict[str, Any] | None:
    """The delta of a chat.completion.chunk; None if the token shows nothing."""
    if token.kind == "tool_call":
        return None if token.tool_call is None else {"tool_calls": [_call_delta(token.tool_call)]}
    if not token.text:
        return None
    return {"reasoning_content" if token.kind == "reasoning" else "content": token.text}


def chat_chunk(
    index: int, delta: dict[str, Any], token: Token | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    """One choice of a chat.completion.chunk."""
    shown = None
    if token is not None and token.logprob is not None and token.kind == "text":
        shown = {"content": logprobs([token])}
    return {"index": index, "delta": delta, "logprobs": shown, "finish_reason": finish_reason}


def text_choice(
    index: int, text: str, tokens: Sequence[Token], finish_reason: str | None, logprobs: bool, offset: int = 0
) -> dict[str, Any]:
    """One choice of a text_completion, whole or a chunk of it. `offset`: characters before it."""
    shown = _old_logprobs(tokens, offset) if logprobs else None
    return {"index": index, "text": text, "logprobs": shown, "finish_reason": finish_reason}


def _call_delta(delta: ToolCallDelta) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": delta.arguments}
    if delta.name is not None:
        function["name"] = delta.name
    call: dict[str, Any] = {"index": delta.index, "function": function}
    if delta.id is not None:
        call |= {"id": delta.id, "type": "function"}
    return call


def logprobs(tokens: Iterable[Token]) -> list[dict[str, Any]]:
    """The log probabilities of those tokens that have one."""
    return [
        _logprob(token.text, token.logprob)
        | {"top_logprobs": [_logprob(top.text, top.logprob) for top in token.top_logprobs]}
        for token in tokens
        if token.logprob is not None
    ]


def _logprob(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "surrogatepass"))}


def _old_logprobs(tokens: Sequence[Token], offset: int) -> dict[str, Any]:
    """The shape of /v1/completions: parallel arrays."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{top.text: top.logprob for top in token.top_logprobs} for token in tokens],
        "text_offset": offsets,
    }
