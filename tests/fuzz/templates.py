# SPDX-License-Identifier: Apache-2.0
"""Target: chat templates. Each renders or is refused in time; no process but its worker ends, and memory is bounded."""

from __future__ import annotations

import resource
import sys
from unittest import mock

from inference_bridge.chat.templates import renderer, template_traits
from inference_bridge.chat.templates import template as chat_template
from inference_bridge.chat.templates.template import ChatTemplate, ChatTemplateError
from inference_bridge.errors import ModelLoadError, UnsupportedError
from inference_bridge.types import Message, Tool, ToolCall

SECONDS = 0.5
MEMORY = 300 << 20

MESSAGES = (
    Message("system", "Be brief."),
    Message("user", "What is 3 + 4?"),
    Message("assistant", "I add.", [ToolCall("1", "add", {"a": 3, "b": 4})]),
    Message("tool", "7", tool_call_id="1", name="add"),
)
TOOL = Tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": ["integer", "null"]}}})


def template(data: bytes) -> None:
    source = data.decode("utf-8", "replace")
    limits = mock.patch.object(renderer, "SECONDS", SECONDS)
    trials = mock.patch.object(chat_template, "_TRIALS_SECONDS", SECONDS)
    silent = mock.patch.object(chat_template._log, "info"), mock.patch.object(template_traits._log, "info")
    before = _peaks()
    with limits, trials, silent[0], silent[1]:
        _used(source)
    (own, workers), (own_before, workers_before) = _peaks(), before
    assert own - own_before < MEMORY
    assert workers == workers_before or workers < MEMORY


def _used(source: str) -> None:
    try:
        made = ChatTemplate(source, bos_token="<s>", eos_token="</s>", backend="fuzz")
    except ModelLoadError:
        return
    for tools in ((), (TOOL,)):
        try:
            prompt = made.render(MESSAGES, tools=tools)
        except (ChatTemplateError, UnsupportedError):
            continue
        assert not (prompt.in_reasoning and prompt.in_answer)


def _peaks() -> tuple[int, int]:
    """The largest memory, in bytes, that this process had so far, and that a process which it started had."""
    unit = 1 if sys.platform == "darwin" else 1024
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    own, children = (resource.getrusage(one).ru_maxrss * unit for one in whose)
    return own, children
