# SPDX-License-Identifier: Apache-2.0
"""Text beside a tool call, in a conversation that Harmony's chat template renders.

Models write it as a message of the channel "commentary", before the call. The template of gpt-oss has no place for it:
it writes text beside a call as reasoning, and leaves it out once an answer follows. So the text is rendered after a
random mark, and the mark is then replaced with the header of the message.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

from ..types import Message

_HEADER = "<|channel|>commentary<|message|>"


def marked(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """Return the messages with a mark before each text beside a call, and the mark; "" if no message has both.

    The text becomes a part of the call's reasoning, which is shown until an answer follows. Before an answer it becomes
    a message of its own.
    """
    mark = secrets.token_hex(16)
    answers = [at for at, message in enumerate(messages) if message.role == "assistant" and not message.tool_calls]
    turns: list[Message] = []
    found = ""
    for at, message in enumerate(messages):
        if not (message.tool_calls and message.text):
            turns.append(message)
            continue
        found = mark
        text = f"{mark}{message.text}"
        if answers and at < answers[-1]:
            turns += [Message("assistant", text), replace(message, content="")]
        else:
            turns.append(replace(message, content="", reasoning=f"{message.reasoning or ''}{text}"))
    return turns, found


def with_headers(prompt: str, mark: str) -> str:
    """Return the prompt with a header in place of each mark."""
    for channel in ("analysis", "final"):
        prompt = prompt.replace(f"<|channel|>{channel}<|message|>{mark}", _HEADER)
    return prompt.replace(mark, f"<|end|><|start|>assistant{_HEADER}")
