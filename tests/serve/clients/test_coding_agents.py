# SPDX-License-Identifier: Apache-2.0
"""The requests of coding agents, in the shapes of their public documentation: a long prompt, sent again with each turn.

Claude Code uses Anthropic's Messages API, Codex OpenAI's Responses API, and editors OpenAI's chat completions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

import inference_bridge as ib

from ...parts.models.contract_models import DEMO_MODEL
from ...parts.servers.answering import events
from ..conftest import running

RULES = "".join(f"{number}. Read the file before you change it, and run its tests afterwards. " for number in range(25))
PARAMETERS = {
    "type": "object",
    "properties": {"path": {"type": "string", "description": "The absolute path"}, "limit": {"type": "number"}},
    "required": ["path"],
    "additionalProperties": False,
    "$schema": "http://json-schema.org/draft-07/schema#",
}
READ = {"name": "Read", "description": "Reads a file"}
EPHEMERAL = {"cache_control": {"type": "ephemeral"}}
TURNS = ["Why does the test fail?", "Show me the line."]
ANSWER = "It expects 4."

Body = Callable[[int], dict[str, Any]]


def claude_code(turns: int) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for text in TURNS[:turns]:
        messages += [
            {"role": "user", "content": [{"type": "text", "text": text, **EPHEMERAL}]},
            {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
        ]
    return {
        "model": "small",
        "max_tokens": 4,
        "stream": True,
        "temperature": 1,
        "system": [{"type": "text", "text": "You are a coding agent.", **EPHEMERAL}, {"type": "text", "text": RULES}],
        "messages": messages[:-1],
        "tools": [{**READ, "input_schema": PARAMETERS}],
        "metadata": {"user_id": "user_1_account__session_2"},
    }


def codex(turns: int) -> dict[str, Any]:
    items: list[dict[str, Any]] = []
    for text in TURNS[:turns]:
        items += [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ANSWER}]},
        ]
    return {
        "model": "small",
        "max_output_tokens": 4,
        "stream": True,
        "store": False,
        "instructions": f"You are a coding agent. {RULES}",
        "input": items[:-1],
        "tools": [{"type": "function", **READ, "strict": False, "parameters": PARAMETERS}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0190-session",
    }


def editor(turns: int) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": f"You are a coding agent. {RULES}"}]
    for text in TURNS[:turns]:
        messages += [
            {"role": "user", "content": [{"type": "text", "text": text}]},
            {"role": "assistant", "content": ANSWER},
        ]
    return {
        "model": "small",
        "max_tokens": 4,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": messages[:-1],
        "tools": [{"type": "function", "function": {**READ, "parameters": PARAMETERS}}],
        "tool_choice": "auto",
        "user": "someone",
    }


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with (
        ib.load_model(DEMO_MODEL, context_length=2048, parallel_slots=2) as model,
        running({"small": model}) as at,
    ):
        yield at


def messages_usage(sent: list[dict[str, Any]]) -> tuple[int, int]:
    usage: dict[str, int] = {}
    for event in sent:
        usage |= event.get("usage") or event.get("message", {}).get("usage") or {}
    return usage["input_tokens"] + usage["cache_read_input_tokens"], usage["cache_read_input_tokens"]


def responses_usage(sent: list[dict[str, Any]]) -> tuple[int, int]:
    usage = sent[-1]["response"]["usage"]
    return usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"]


def chat_usage(sent: list[dict[str, Any]]) -> tuple[int, int]:
    usage = sent[-1]["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize(
    ("route", "body", "usage_of"),
    [
        ("/v1/messages?beta=true", claude_code, messages_usage),
        ("/v1/responses", codex, responses_usage),
        ("/v1/chat/completions", editor, chat_usage),
    ],
)
def test_a_long_prompt_is_evaluated_once(
    address: str, route: str, body: Body, usage_of: Callable[[list[dict[str, Any]]], tuple[int, int]]
) -> None:
    """If the prompt is sent again, unchanged or with the next turn, at most 5 % of it are evaluated again."""

    def ask(turns: int) -> tuple[int, int]:
        headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "interleaved-thinking-2025-05-14"}
        answer = httpx2.post(f"{address}{route}", json=body(turns), headers=headers, timeout=120)
        assert answer.status_code == 200, answer.text
        return usage_of(events(answer.text.replace("data: [DONE]", "")))

    first, _ = ask(1)
    assert first > 400
    for turns in (1, 2):
        tokens, cached = ask(turns)
        assert tokens - cached - (tokens - first) <= 0.05 * tokens
