# SPDX-License-Identifier: Apache-2.0
"""Answers as Anthropic's messages, as one object or as the events of a stream.

Source: https://docs.anthropic.com/en/api/messages and https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from ...types import GenerateMetrics, Token, ToolCallDelta
from ..cut import CutStream
from ..errors import RequestError
from ..events import typed_event
from .requests import MessagesRequest

_REASONS = {"stop": "end_turn", "tool_calls": "tool_use"}


class MessageFormat:
    """Shows one answer as a message.

    Args:
        asked: The request.
    """

    def __init__(self, asked: MessagesRequest) -> None:
        self._asked = asked
        self._id = f"msg_{uuid.uuid4().hex}"
        self._index = -1
        self._block: str | int | None = None
        """The block that is open: "text", "thinking", or the index of a tool call."""

    async def whole(self, stream: CutStream) -> dict[str, Any]:
        result = await stream.result()
        content: list[dict[str, Any]] = []
        if result.reasoning:
            shown = "" if self._asked.hides_thinking else result.reasoning
            content.append({"type": "thinking", "thinking": shown, "signature": ""})
        if result.text:
            content.append(_text(result.text))
        content += [_tool_use(call.id, call.name, call.arguments) for call in result.tool_calls]
        return self._message(content, stream)

    def opening(self, stream: CutStream) -> Iterator[str]:
        message = self._message([], stream) | {"stop_reason": None, "stop_sequence": None}
        yield typed_event("message_start", message=message)

    def token(self, token: Token) -> Iterator[str]:
        if token.tool_call is not None:
            yield from self._call(token.tool_call)
        elif token.kind == "reasoning" and token.text:
            yield from self._within("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            if not self._asked.hides_thinking:
                yield self._delta("thinking_delta", thinking=token.text)
        elif token.kind == "text" and token.text:
            yield from self._within("text", _text(""))
            yield self._delta("text_delta", text=token.text)

    def closing(self, stream: CutStream) -> Iterator[str]:
        yield from self._close()
        delta = {"stop_reason": self._stop_reason(stream), "stop_sequence": stream.stop_sequence}
        yield typed_event("message_delta", delta=delta, usage=_usage(stream.metrics))
        yield typed_event("message_stop")

    def failed(self, problem: RequestError) -> Iterator[str]:
        error = problem.to_anthropic()
        yield typed_event(error.pop("type"), **error)

    def _call(self, delta: ToolCallDelta) -> Iterator[str]:
        yield from self._within(delta.index, _tool_use(delta.id or f"toolu_{uuid.uuid4().hex}", delta.name or "", {}))
        if delta.arguments:
            yield self._delta("input_json_delta", partial_json=delta.arguments)

    def _within(self, block: str | int, opened: dict[str, Any]) -> Iterator[str]:
        """Open the block, if it is not open, and close the block before it."""
        if block != self._block:
            yield from self._close()
            self._block = block
            self._index += 1
            yield typed_event("content_block_start", index=self._index, content_block=opened)

    def _close(self) -> Iterator[str]:
        if self._block is None:
            return
        if self._block == "thinking":
            yield self._delta("signature_delta", signature="")
        self._block = None
        yield typed_event("content_block_stop", index=self._index)

    def _delta(self, kind: str, **data: str) -> str:
        return typed_event("content_block_delta", index=self._index, delta={"type": kind, **data})

    def _message(self, content: list[dict[str, Any]], stream: CutStream) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._asked.conversation.model,
            "content": content,
            "stop_reason": self._stop_reason(stream),
            "stop_sequence": stream.stop_sequence,
            "usage": _usage(stream.metrics),
        }

    def _stop_reason(self, stream: CutStream) -> str | None:
        if stream.stop_sequence is not None:
            return "stop_sequence"
        if stream.finish_reason == "length":
            most = self._asked.conversation.config.max_tokens or 0
            return "max_tokens" if stream.metrics.generated_tokens >= most else "model_context_window_exceeded"
        return _REASONS.get(stream.finish_reason or "")


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "citations": None}


def _tool_use(id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": name, "input": arguments}


def _usage(metrics: GenerateMetrics) -> dict[str, int]:
    """Return the numbers of tokens. In Anthropic's API, input_tokens does not include reused prompt tokens."""
    return {
        "input_tokens": metrics.prompt_tokens - metrics.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": metrics.cached_tokens,
        "output_tokens": metrics.generated_tokens,
    }
