# SPDX-License-Identifier: Apache-2.0
"""Answers as OpenAI's responses, as one object or as the events of a stream.

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ...types import GenerateMetrics, Token, ToolCallDelta
from ..cut import CutStream
from ..errors import RequestError
from ..events import typed_event
from ..openai.answers import logprobs
from .requests import ResponseRequest

Event = tuple[str, dict[str, Any]]


class ResponseFormat:
    """Shows one answer as a response.

    Args:
        asked: The request.
        finished: Called with the response once it is complete.
    """

    def __init__(self, asked: ResponseRequest, finished: Callable[[dict[str, Any]], None]) -> None:
        self._finished = finished
        self._output: list[dict[str, Any]] = []
        self._block: str | int | None = None
        """The item that is open: "reasoning", "message", or the index of a tool call."""
        self._numbers = 0
        self._reasoning_tokens = 0
        self._top = asked.top_logprobs
        self._known: list[dict[str, Any]] = []
        """Log probabilities of text tokens that are shown with the next text, such as an emoji's first token."""
        self._response: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": asked.model,
            "output": [],
            "usage": None,
            **asked.shown,
        }

    async def whole(self, stream: CutStream) -> dict[str, Any]:
        async for token in stream:
            for _ in self._token(token):
                pass
        for _ in self._closing(stream):
            pass
        return self._response

    def opening(self, stream: CutStream) -> Iterator[str]:
        del stream
        events = [
            ("response.created", {"response": self._response}),
            ("response.in_progress", {"response": self._response}),
        ]
        yield from self._formatted(events)

    def token(self, token: Token) -> Iterator[str]:
        yield from self._formatted(self._token(token))

    def closing(self, stream: CutStream) -> Iterator[str]:
        yield from self._formatted(self._closing(stream))

    def failed(self, problem: RequestError) -> Iterator[str]:
        self._response |= {
            "status": "failed",
            "error": {"code": "server_error", "message": str(problem)},
            "output": self._output,
        }
        yield from self._formatted([("response.failed", {"response": self._response})])

    def _formatted(self, events: Iterable[Event]) -> Iterator[str]:
        for kind, data in events:
            yield typed_event(kind, sequence_number=self._numbers, **data)
            self._numbers += 1

    def _token(self, token: Token) -> Iterator[Event]:
        self._reasoning_tokens += token.kind == "reasoning"
        if token.tool_call is not None:
            yield from self._call(token.tool_call)
        elif token.kind == "reasoning" and token.text:
            if self._block != "reasoning":
                yield from self._open("reasoning", "reasoning", summary=[], content=[], encrypted_content=None)
                yield from self._open_part({"type": "reasoning_text", "text": ""})
            self._part["text"] += token.text
            yield "response.reasoning_text.delta", self._at_part(delta=token.text)
        elif token.kind == "text":
            self._known += logprobs([token], self._top)
            if not token.text:
                return
            if self._block != "message":
                yield from self._open("message", "message", role="assistant", content=[])
                yield from self._open_part({"type": "output_text", "text": "", "annotations": [], "logprobs": []})
            shown, self._known = self._known, []
            self._part["text"] += token.text
            self._part["logprobs"] += shown
            yield "response.output_text.delta", self._at_part(delta=token.text, logprobs=shown)

    def _call(self, delta: ToolCallDelta) -> Iterator[Event]:
        if self._block != delta.index:
            call_id = delta.id or f"call_{uuid.uuid4().hex}"
            yield from self._open(delta.index, "function_call", call_id=call_id, name=delta.name or "", arguments="")
        if delta.arguments:
            self._item["arguments"] += delta.arguments
            yield "response.function_call_arguments.delta", self._at(delta=delta.arguments)

    @property
    def _item(self) -> dict[str, Any]:
        return self._output[-1]

    @property
    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = self._item["content"][0]
        return part

    def _at(self, **more: Any) -> dict[str, Any]:
        return {"item_id": self._item["id"], "output_index": len(self._output) - 1, **more}

    def _at_part(self, **more: Any) -> dict[str, Any]:
        return self._at(content_index=0, **more)

    def _open(self, block: str | int, kind: str, **more: Any) -> Iterator[Event]:
        yield from self._close("completed")
        self._block = block
        prefix = {"reasoning": "rs", "message": "msg"}.get(kind, "fc")
        self._output.append({"id": f"{prefix}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress", **more})
        yield "response.output_item.added", {"output_index": len(self._output) - 1, "item": self._item}

    def _open_part(self, part: dict[str, Any]) -> Iterator[Event]:
        yield "response.content_part.added", self._at_part(part=part)
        self._item["content"].append(part)

    def _close(self, status: str) -> Iterator[Event]:
        """End the item that is open."""
        if self._block is None:
            return
        item = self._item
        if item["type"] == "function_call":
            yield "response.function_call_arguments.done", self._at(name=item["name"], arguments=item["arguments"])
        else:
            text = {"text": self._part["text"]}
            if item["type"] == "message":
                yield "response.output_text.done", self._at_part(**text, logprobs=self._part["logprobs"])
            else:
                yield "response.reasoning_text.done", self._at_part(**text)
            yield "response.content_part.done", self._at_part(part=self._part)
        item["status"] = status
        self._block = None
        yield "response.output_item.done", {"output_index": len(self._output) - 1, "item": item}

    def _closing(self, stream: CutStream) -> Iterator[Event]:
        cut = stream.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        yield from self._close(status)
        self._response |= {
            "status": status,
            "output": self._output,
            "usage": _usage(stream.metrics, self._reasoning_tokens),
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        }
        self._finished(self._response)
        yield f"response.{status}", {"response": self._response}


def _usage(metrics: GenerateMetrics, reasoning: int) -> dict[str, Any]:
    return {
        "input_tokens": metrics.prompt_tokens,
        "input_tokens_details": {"cached_tokens": metrics.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": metrics.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": metrics.prompt_tokens + metrics.generated_tokens,
    }
