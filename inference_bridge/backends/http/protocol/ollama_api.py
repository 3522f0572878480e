# SPDX-License-Identifier: Apache-2.0
"""Ollama's own API: /api/chat and /api/generate, whose answers are lines of JSON.

Ollama's OpenAI-compatible API puts the chat template around the prompt of a completion, knows neither top_k nor
min_p nor repeat_penalty, and cuts off the beginning of a prompt that does not fit. This API does none of that.
See docs/api in Ollama's repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ....chat.attachments import content
from ....errors import ServerError, UnsupportedError
from ....options import SAMPLING, GenerateConfig
from ....request import Request
from ....types import Attachment, FinishReason, Message, ModelInfo, Token, Tool
from ..transport.errors import UnansweredError
from .fields import NO_LOGPROBS, as_base64, number
from .llama_api import SEEDS, logprobs_of
from .text import Text, whole
from .tool_calls import ToolCalls

# ---------------------------------------------------------------- requests


def completion(prompt: str, config: GenerateConfig) -> dict[str, Any]:
    """Return the body of a request to /api/generate."""
    return {"prompt": prompt, "raw": True, **_common(config)}


def infill(prefix: str, suffix: str, config: GenerateConfig) -> dict[str, Any]:
    """Return the body of a fill-in-the-middle request to /api/generate, which uses the model's template."""
    return {"prompt": prefix, "suffix": suffix, **_common(config)}


def embedding(texts: Sequence[str], truncate: bool) -> dict[str, Any]:
    """Return the body of a request to /api/embed, which truncates long texts by default."""
    return {"input": list(texts), "truncate": truncate}


def chat(messages: Iterable[Message], config: GenerateConfig) -> dict[str, Any]:
    """Return the body of a request to /api/chat. Raises UnsupportedError for an attachment that it can't contain."""
    out = {"messages": [_message(message) for message in messages], **_common(config)}
    tools = [tool.to_dict() for tool in config.tools or () if isinstance(tool, Tool)]
    if tools and config.tool_choice != "none":
        out["tools"] = tools
    if config.reasoning is not None:
        out["think"] = config.reasoning
    return out


def _common(config: GenerateConfig) -> dict[str, Any]:
    options = {name: getattr(config, name) for name in SAMPLING if getattr(config, name) is not None}
    for name in ("top_p", "repeat_penalty"):
        if options.get(name) == 0:
            options[name] = 1.0  # off
    if config.seed is not None:
        options["seed"] = config.seed % SEEDS
    if config.max_tokens is not None:
        options["num_predict"] = config.max_tokens
    if config.stop:
        options["stop"] = list(config.stop)
    # Else the beginning of what does not fit is dropped, of the prompt and while it generates.
    out: dict[str, Any] = {"options": options, "stream": True, "truncate": False, "shift": False}
    if config.json_schema is not None:
        out["format"] = dict(config.json_schema)
    if config.logprobs is not None and config.logprobs > 0:
        out["logprobs"], out["top_logprobs"] = True, config.logprobs
    return out


def _message(message: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.attachments:
        out["images"] = [_image(one) for one in message.attachments]
    if message.tool_calls:
        out["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in message.tool_calls
        ]
    for name, value in (
        ("tool_call_id", message.tool_call_id),
        ("tool_name", message.name),
        ("thinking", message.reasoning),
    ):
        if value is not None:
            out[name] = value
    return out


def _image(attachment: Attachment) -> str:
    data = content(attachment)
    if data is None or not attachment.type.startswith("image/"):
        raise UnsupportedError(f"{attachment.type} attachments", "http", "Ollama takes images, and not by URL")
    return as_base64(data)


# ---------------------------------------------------------------- answers


class Reader:
    """Makes Tokens from the lines of both endpoints."""

    def __init__(self, request: Request) -> None:
        self.done = False
        self._request = request
        self._text = Text(tuple(request.config.stop or ()))
        self._top = request.config.logprobs or 0
        self._calls = ToolCalls()
        self._count = 0
        self._has_logprobs = self._lacks_logprobs = False

    def read(self, event: Mapping[str, Any]) -> Sequence[Token]:
        message = event["message"] if "message" in event else {"content": event["response"]}
        out: list[Token] = []
        if thought := message.get("thinking"):
            out += [*self._text.finish(), Token(whole(thought), kind="reasoning")]
        entries = event.get("logprobs") or ()
        if text := message.get("content") or "":
            out += self._visible(text, entries if not thought else ())
        for call in message.get("tool_calls") or ():
            piece = {"index": self._count, "id": call.get("id"), "function": call.get("function")}
            self._count += 1
            out.append(Token("", kind="tool_call", tool_call=self._calls.delta(piece)))
        if self._text.stopped:
            self._end("stop", event)
        elif event.get("done"):
            self._end("length" if event.get("done_reason") == "length" else "stop", event)
        return out

    def _visible(self, text: str, entries: Sequence[Mapping[str, Any]]) -> Sequence[Token]:
        if not self._top or not entries:
            self._lacks_logprobs = True
            return self._text.push(text)
        self._has_logprobs = True
        pieces = [str(entry.get("token", "")) for entry in entries]
        if "".join(pieces) != text:
            pieces = [""] * (len(entries) - 1) + [text]
        out: list[Token] = []
        for piece, entry in zip(pieces, entries, strict=True):
            logprob, top = logprobs_of(entry)
            out += self._text.push(piece, None, logprob, top[: self._top])
        return out

    def _end(self, reason: FinishReason, event: Mapping[str, Any]) -> None:
        self.done = True
        self._request.finish_reason = "tool_calls" if self._calls and reason == "stop" else reason
        counts = {"prompt_tokens": "prompt_eval_count", "generated_tokens": "eval_count"}
        self._request.measure(**{name: number(event, key) for name, key in counts.items() if key in event})
        seconds = {"prefill_seconds": "prompt_eval_duration", "decode_seconds": "eval_duration"}
        self._request.measure(**{name: number(event, key) / 1e9 for name, key in seconds.items() if key in event})

    def finish(self) -> Sequence[Token]:
        if not self.done:
            raise UnansweredError("the answer broke off before its end")
        if self._top and self._lacks_logprobs and not self._has_logprobs:
            raise ServerError(NO_LOGPROBS)
        self._calls.check()
        return self._text.finish()


def first_token(answer: Any) -> dict[str, Any]:
    """Return the token of an answer with one token.

    Args:
        answer: The JSON body of an answer of /api/generate that was not streamed.

    Returns:
        An entry as in `logprobs.content` of OpenAI's chat API: `token`, `logprob` and `top_logprobs`.
    """
    entries = answer.get("logprobs") or ()
    return {"token": answer["response"], **(entries[0] if entries else {})}


# ---------------------------------------------------------------- the model


_CAPABILITIES = {
    "completion": "chat",
    "tools": "tools",
    "vision": "images",
    "thinking": "reasoning",
    "embedding": "embeddings",
    "insert": "infill",
}


def capabilities(shown: Mapping[str, Any]) -> frozenset[str]:
    """Return the capabilities of the model, from the answer of /api/show."""
    said = shown.get("capabilities")
    found = {_CAPABILITIES[one] for one in said if one in _CAPABILITIES} if isinstance(said, list) else {"chat"}
    return frozenset(found | ({"json_schema", "logprobs"} if "chat" in found else set()))


def info(shown: Mapping[str, Any]) -> ModelInfo:
    """Return the properties of the model, from the answer of /api/show. The context is 0 if its parameters set none."""
    fields = shown.get("model_info")
    fields = fields if isinstance(fields, Mapping) else {}
    kind = str(fields.get("general.architecture") or "")
    asked = re.search(r"^\s*num_ctx\s+(\d{1,9})", str(shown.get("parameters") or ""), re.MULTILINE)
    return ModelInfo(
        architecture=kind,
        num_layers=number(fields, f"{kind}.block_count"),
        hidden_size=number(fields, f"{kind}.embedding_length"),
        context_length=int(asked[1]) if asked else 0,
    )
