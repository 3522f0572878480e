# SPDX-License-Identifier: Apache-2.0
"""The requests to this package's own server, and the reader of its answers (see `bridge_format`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....chat.attachments import content
from ....errors import UnsupportedError
from ....options import SAMPLING, GenerateConfig
from ....request import Request
from ....types import Message, Token
from .. import bridge_format
from ..transport.errors import UnansweredError

_PLAIN = frozenset({*SAMPLING, "max_tokens", "stop", "seed", "logprobs", "timeout"})
"""Options that a model need not check before it starts."""

_REASONS = ("stop", "length", "tool_calls")


def generation(prompt: str, config: GenerateConfig) -> dict[str, Any]:
    return {"prompt": prompt, "config": bridge_format.config_to_json(config)}


def infilling(prefix: str, suffix: str, config: GenerateConfig) -> dict[str, Any]:
    return {"prefix": prefix, "suffix": suffix, "config": bridge_format.config_to_json(config)}


def conversation(messages: Sequence[Message], config: GenerateConfig, backend: str) -> dict[str, Any]:
    """Return the body of a chat. Reads the attached files. Raises UnsupportedError for an attachment at a URL."""
    return {
        "messages": [_message(message, backend) for message in messages],
        "config": bridge_format.config_to_json(config),
    }


def _message(message: Message, backend: str) -> dict[str, Any]:
    data = {}
    for place, attachment in enumerate(message.attachments):
        read = content(attachment)
        if read is None:
            raise UnsupportedError(f"{attachment.type} attachments at a URL", backend, "the server fetches no URLs")
        data[place] = read
    return bridge_format.message_to_json(message, data)


def needs_verifying(config: GenerateConfig) -> bool:
    """Return whether the served model must check the options at the call."""
    return any(name not in _PLAIN for name in config.set_fields())


def is_usual(messages: Sequence[Message]) -> bool:
    """Return whether every chat template renders these messages: at most one system message, then alternating user and
    assistant messages, without tool calls and attachments."""
    roles = [message.role for message in messages]
    if roles[:1] == ["system"]:
        del roles[0]
    turns = [("user", "assistant")[place % 2] for place in range(len(roles))]
    return bool(roles) and roles == turns and not any(message.tool_calls or message.attachments for message in messages)


class TokenReader:
    """Converts the events of /bridge/generate and /bridge/chat to Tokens, one for each event."""

    def __init__(self, request: Request) -> None:
        self.done = False
        self._request = request
        self._ended = False

    def read(self, event: Mapping[str, Any]) -> Sequence[Token]:
        if "finish" not in event:
            return (bridge_format.token_from_json(event),)
        reason = event["finish"]
        if reason not in _REASONS:  # the server closed the model, or shuts down
            raise UnansweredError(f"the server ended the answer before it was complete ({reason})")
        self.done = self._ended = True
        self._request.finish_reason = reason
        self._request.shortened = event.get("shortened") is True
        metrics = bridge_format.metrics_from_json(event["metrics"])
        self._request.measure(
            prompt_tokens=metrics.prompt_tokens,
            cached_tokens=metrics.cached_tokens,
            generated_tokens=metrics.generated_tokens,
            prefill_seconds=metrics.prefill_seconds,
            decode_seconds=metrics.decode_seconds,
            peak_memory_bytes=metrics.peak_memory_bytes,
            active_memory_bytes=metrics.active_memory_bytes,
        )
        return ()

    def finish(self) -> Sequence[Token]:
        if not self._ended:
            raise UnansweredError("the answer broke off before its end")
        return ()
