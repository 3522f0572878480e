# SPDX-License-Identifier: Apache-2.0
"""Convert generated tokens to LangChain messages, or to message chunks as they stream."""

from __future__ import annotations

import json
import secrets
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall, UsageMetadata
from langchain_core.messages import ToolCall as LangChainToolCall
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.utils.json import parse_partial_json

from inference_bridge import FinishReason, GenerateConfig, GenerateMetrics, GenerateResult, Token, ToolCallDelta
from inference_bridge.authoring import ADAPTER_MAX_TOKENS, cut_off

PROVIDER = "inference-bridge"


def message(result: GenerateResult, model_name: str, config: GenerateConfig) -> AIMessage:
    """Convert a finished answer.

    Args:
        result: What was generated.
        model_name: The name of the model for the message's metadata.
        config: The options of the call.

    Returns:
        The message. A tool call whose arguments are not a complete JSON object is among `invalid_tool_calls`.
    """
    calls: list[LangChainToolCall] = []
    invalid: list[InvalidToolCall] = []
    for call in _calls(token.tool_call for token in result.tokens if token.tool_call is not None):
        arguments = call.parsed()
        if arguments is not None:
            calls.append(tool_call(name=call.name, args=arguments, id=call.id))
        else:
            error = _incomplete(result.finish_reason)
            invalid.append(invalid_tool_call(name=call.name, args=call.arguments, id=call.id, error=error))
    logprobs = [_logprob(token) for token in result.tokens if token.logprob is not None]
    return AIMessage(
        content=result.text,
        additional_kwargs={"reasoning_content": result.reasoning} if result.reasoning else {},
        tool_calls=calls,
        invalid_tool_calls=invalid,
        usage_metadata=_usage(result.metrics, sum(token.kind == "reasoning" for token in result.tokens)),
        response_metadata={
            **_origin(model_name),
            **_end(result.finish_reason, result.metrics, config, result.shortened),
            **({"logprobs": {"content": logprobs}} if logprobs else {}),
        },
    )


class Chunks:
    """Converts the tokens of one answer to message chunks.

    Blocks and tool calls are numbered in one sequence, because LangChain merges blocks that have the same number.

    Args:
        model_name: The name of the model for the metadata.
        config: The options of the call.
        blocks: Whether content consists of standard content blocks, LangChain's output version "v1".
    """

    def __init__(self, model_name: str, config: GenerateConfig, *, blocks: bool) -> None:
        self._config = config
        self._blocks = blocks
        self._metadata: dict[str, Any] = _origin(model_name)  # of the next chunk
        self._number = -1
        self._open: tuple[str, int] | None = None
        self._calls: dict[int, tuple[_Call, int]] = {}
        self._reasoning_tokens = 0

    def of(self, token: Token) -> AIMessageChunk | None:
        """Return the chunk of a token. None: the token has neither text nor a tool call nor a log probability."""
        self._reasoning_tokens += token.kind == "reasoning"
        if token.logprob is not None:
            self._metadata = {**self._metadata, "logprobs": {"content": [_logprob(token)]}}
        if token.tool_call is not None:
            return self._call(token.tool_call)
        if token.text or token.logprob is not None:
            return self._text(token)
        return None

    def end(
        self, finish_reason: FinishReason | None, metrics: GenerateMetrics, shortened: bool
    ) -> Iterator[AIMessageChunk]:
        """Yield the last chunks: one for each incomplete tool call, then one with the usage and the metadata."""
        for call, number in self._calls.values():
            if call.parsed() is None:
                yield self._chunk(tool_call_chunks=[_marked_incomplete(call, number, finish_reason)])
        self._metadata |= _end(finish_reason, metrics, self._config, shortened)
        yield self._chunk(usage_metadata=_usage(metrics, self._reasoning_tokens), chunk_position="last")

    def _text(self, token: Token) -> AIMessageChunk:
        kind = "reasoning" if token.kind == "reasoning" else "text"
        if not token.text:
            return self._chunk()
        if self._blocks:
            return self._chunk([{"type": kind, kind: token.text, "index": self._block(kind)}])
        if kind == "reasoning":
            return self._chunk(additional_kwargs={"reasoning_content": token.text})
        return self._chunk(token.text)

    def _call(self, delta: ToolCallDelta) -> AIMessageChunk:
        call, number = self._calls.get(delta.index) or (_Call(), self._block("tool_call", delta.index))
        self._calls[delta.index] = call, number
        first = not call.id
        call.add(delta)
        name, id = (delta.name, call.id if first else None)
        return self._chunk(tool_call_chunks=[tool_call_chunk(name=name, args=delta.arguments, id=id, index=number)])

    def _block(self, kind: str, index: int = 0) -> int:
        """Return the number of the block that a token belongs to. A new block begins where the kind changes."""
        if self._open != (kind, index):
            self._open = (kind, index)
            self._number += 1
        return self._number

    def _chunk(self, content: str | list[str | dict[Any, Any]] | None = None, **given: Any) -> AIMessageChunk:
        metadata, self._metadata = self._metadata, {}
        if content is None:
            content = [] if self._blocks else ""
        return AIMessageChunk(content=content, response_metadata=metadata, **given)


# ---------------------------------------------------------------- tool calls


class _Call:
    """One tool call, assembled from its deltas."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments = ""

    def add(self, delta: ToolCallDelta) -> None:
        self.id = self.id or delta.id or f"call_{secrets.token_hex(8)}"
        self.name = self.name or delta.name or ""
        self.arguments += delta.arguments

    def parsed(self) -> dict[str, Any] | None:
        """Return the arguments, or None if they are not a complete JSON object."""
        try:
            value = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            return None
        return value if self.name and isinstance(value, dict) else None


def _calls(deltas: Iterable[ToolCallDelta]) -> list[_Call]:
    calls: dict[int, _Call] = {}
    for delta in deltas:
        calls.setdefault(delta.index, _Call()).add(delta)
    return [call for _, call in sorted(calls.items())]


def _incomplete(finish_reason: FinishReason | None) -> str:
    return f"the call is incomplete (finish reason {finish_reason!r})"


def _marked_incomplete(call: _Call, number: int, finish_reason: FinishReason | None) -> Any:
    """Return a last chunk for a call that was cut off. It makes LangChain treat the call as invalid.

    LangChain completes JSON that was cut off, so a tool could get the first half of a path as the whole path. It does
    not complete JSON that has a closing bracket in a wrong place.
    """
    brackets = (
        "]",
        "}",
        '"]',
        '"}',
        '\\"]',
        '\\"}',
    )  # one of them is in a wrong place wherever the JSON was cut off, also inside a string or after a backslash
    bracket = next((bracket for bracket in brackets if not _completed(call.arguments + bracket)), "")
    return tool_call_chunk(name=None, args=f"{bracket} <{_incomplete(finish_reason)}>", id=None, index=number)


def _completed(arguments: str) -> bool:
    try:
        return isinstance(parse_partial_json(arguments), dict)
    except (ValueError, RecursionError):
        return False


# ---------------------------------------------------------------- metadata


def _origin(model_name: str) -> dict[str, Any]:
    return {"model_name": model_name, "model_provider": PROVIDER}


def _end(
    finish_reason: FinishReason | None, metrics: GenerateMetrics, config: GenerateConfig, shortened: bool
) -> dict[str, Any]:
    """Return the metadata of an answer's end. Warn if the default value of max_tokens cut off the answer."""
    timings = {name: value for name, value in metrics.to_dict().items() if isinstance(value, float)}
    end: dict[str, Any] = {"finish_reason": finish_reason, "timings": timings}
    if shortened:
        end["shortened"] = True
    if finish_reason == "length":
        end["cut_off"] = why = cut_off(config, metrics.generated_tokens)
        if config.max_tokens == ADAPTER_MAX_TOKENS <= metrics.generated_tokens:
            warnings.warn(why, RuntimeWarning, stacklevel=2)
    return end


def _usage(metrics: GenerateMetrics, reasoning: int) -> UsageMetadata:
    return {
        "input_tokens": metrics.prompt_tokens,
        "output_tokens": metrics.generated_tokens,
        "total_tokens": metrics.prompt_tokens + metrics.generated_tokens,
        "input_token_details": {"cache_read": metrics.cached_tokens},
        "output_token_details": {"reasoning": reasoning},
    }


def _logprob(token: Token) -> dict[str, Any]:
    """Return a token's log probabilities as OpenAI's API formats them."""
    assert token.logprob is not None
    own = _probability(token.text, token.logprob)
    return own | {"top_logprobs": [_probability(top.text, top.logprob) for top in token.top_logprobs]}


def _probability(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "bytes": list(text.encode()), "logprob": logprob}
