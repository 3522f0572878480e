# SPDX-License-Identifier: Apache-2.0
"""Target: chat templates. One renders within its bounds or fails, and reaches nothing but what it is given."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any
from unittest import mock

from inference_bridge.chat import template as chat_template
from inference_bridge.chat.sandbox import Budget, TemplateEnvironment
from inference_bridge.chat.template import ChatTemplate, ChatTemplateError
from inference_bridge.errors import ModelLoadError, UnsupportedError
from inference_bridge.types import Message, Tool, ToolCall

SECONDS = 1.0
CHARACTERS = 1 << 16

_OUTSIDE = ("open", "os.", "subprocess.", "socket.", "ctypes.", "shutil.", "pty.")
_INSIDE_OUT = (" object at 0x", "<class '", "<module '", "<built-in ", "<bound method", "jinja2.", "__builtins__")

MESSAGES = (
    Message("system", "Be brief."),
    Message("user", "What is 3 + 4?"),
    Message("assistant", "", [ToolCall("call00001", "add", {"a": 3, "b": 4})]),
    Message("tool", "7", tool_call_id="call00001", name="add"),
)
TOOL = Tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}})
VARIABLES: Mapping[str, Any] = {
    "messages": [message.to_dict() for message in MESSAGES],
    "tools": [TOOL.to_dict()],
    "add_generation_prompt": True,
    "bos_token": "<s>",
}


class _Watch:
    """Notices, by the interpreter's own audit events, whatever a template does beyond making text."""

    def __init__(self) -> None:
        self.active = False
        self.seen: list[str] = []
        importlib.import_module("jinja2.debug")  # which jinja2 itself imports for its first traceback
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.active and event.startswith(_OUTSIDE):
            self.seen.append(f"{event} {arguments!r}"[:200])


_watch: list[_Watch] = []


def template(data: bytes) -> None:
    source = data.decode("utf-8", "replace")
    _in_the_sandbox(source)
    _as_a_models(source)


def _in_the_sandbox(source: str) -> None:
    if not _watch:
        _watch.append(_Watch())
    try:
        render = TemplateEnvironment().compile_template(source)
    except MemoryError:
        raise
    except Exception:
        return
    _watch[0].seen.clear()
    _watch[0].active = True
    try:
        text = render(VARIABLES, Budget(SECONDS, CHARACTERS))
    except MemoryError:
        raise
    except Exception:
        return
    finally:
        _watch[0].active = False
        assert not _watch[0].seen
    assert len(text) <= CHARACTERS + len(source)
    assert not any(sign in text and sign not in source for sign in _INSIDE_OUT), text[:1000]


def _as_a_models(source: str) -> None:
    limits = mock.patch.multiple(chat_template, _SECONDS=0.3, _TRIALS_SECONDS=0.3, _CHARACTERS=1 << 18)
    with limits, mock.patch.object(chat_template._log, "info"):
        try:
            made = ChatTemplate(source, bos_token="<s>", eos_token="</s>", backend="fuzz")
        except ModelLoadError:
            return
        for tools in ((), (TOOL,)):
            try:
                prompt = made.render(MESSAGES, tools=tools)
            except (ChatTemplateError, UnsupportedError):
                continue
            assert isinstance(prompt.text, str)
            assert not (prompt.in_reasoning and prompt.in_answer)
