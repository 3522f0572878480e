# SPDX-License-Identifier: Apache-2.0
"""Finds out what a chat template supports, by rendering small conversations.

Templates don't state what they support. So each trait is the result of a trial, for example whether the
prompt contains the name of a tool. `template` replaces the features that a template lacks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from ...errors import GenerationError
from ...types import Tool, join_tool_calls
from ..markup import GENERIC_OPENERS, ChatFormat, chat_output, with_values_as_written
from .renderer import FailureError, RefusalError

_log = logging.getLogger(__name__)


Run: TypeAlias = Callable[[Mapping[str, Any], "list[Any] | None"], str]
"""Renders the template. Arguments: its variables, and the value of "tools" if the variables have none."""


@dataclass(slots=True)
class Traits:
    """What a template supports, and in which form it takes messages.

    Attributes:
        format: How the model marks reasoning and tool calls.
        system: It supports the system role.
        parts: It takes content as a list of parts, such as text and images.
        only_parts: It takes content only as a list of parts, not as text.
        tools: It shows a list of tools to the model, and how to call them.
        parameters: It shows the parameters of tools.
        tool_calls: It shows earlier calls and results.
        tool_role: It shows results in the role "tool", even if it does not support calls.
        no_tools: The value of the variable "tools" in a conversation without tools.
        no_content: The content that a message with calls but without text must have.
        arguments_as_text: It takes a call's arguments as JSON text, not as a mapping.
        one_call_each: It takes one call in a message, not several.
        text_apart: It takes text and calls only in separate messages.
        text_marked: Text beside calls needs the marks of `harmony_text`.
        reasoning_with_calls: If text and calls are separate messages, the reasoning belongs to the message with calls.
        thinking_parts: It takes reasoning as a part of the content, of type "thinking".
        ids: The ids of calls that it accepts: any; those with nine or more characters;
            those of nine letters and digits; those that contain the tool's name, as Kimi's models write them.
        reasoning_toggle: It can switch reasoning on and off.
        reasoning_effort: It has levels of reasoning.
    """

    format: ChatFormat
    system: bool = False
    parts: bool = False
    only_parts: bool = False
    tools: bool = False
    parameters: bool = False
    tool_calls: bool = False
    tool_role: bool = False
    no_tools: list[Any] | None = None
    no_content: str | None = ""
    arguments_as_text: bool = False
    one_call_each: bool = False
    text_apart: bool = False
    text_marked: bool = False
    reasoning_with_calls: bool = False
    thinking_parts: bool = False
    ids: Literal["any", "nine_or_more", "nine", "with_name"] = "any"
    reasoning_toggle: bool = False
    reasoning_effort: bool = False


REASONING_KEYS = ("reasoning_content", "thinking", "reasoning", "thought")
"""The names that templates use for the reasoning of a message."""


def written_calls(calls: Sequence[dict[str, Any]], as_text: bool) -> list[dict[str, Any]]:
    """Return calls in OpenAI's form.

    Args:
        calls: The calls, with mappings as arguments.
        as_text: Whether to write the arguments as JSON text.
    """
    if not as_text:
        return list(calls)
    functions = [call["function"] for call in calls]
    return [
        call | {"function": function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
        for call, function in zip(calls, functions, strict=True)
    ]


def reasoning_variables(reasoning: bool | str | None) -> dict[str, Any]:
    """Return the variables with which templates switch reasoning on or off, or set its level."""
    if reasoning is None:
        return {}
    switched = reasoning is not False
    variables: dict[str, Any] = {"enable_thinking": switched, "thinking": switched}
    return variables | {"reasoning_effort": reasoning} if isinstance(reasoning, str) else variables


_SCHEMA = {
    "type": "object",
    "properties": {"KEY": {"type": "string", "description": "DESCRIPTION"}},
    "required": ["KEY"],
}
_TOOL = Tool("TOOL", "DESCRIPTION", _SCHEMA).to_dict()
_CALLED = Tool("TOOL1", "", _SCHEMA)


_THOUGHT = dict.fromkeys((*REASONING_KEYS, "tool_plan"), "THOUGHT")


def _call(number: int, id: str) -> dict[str, Any]:
    return {
        "id": id,
        "type": "function",
        "function": {"name": f"TOOL{number}", "arguments": {"KEY": f"VALUE{number}"}},
    }


def _result(number: int, id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "name": f"TOOL{number}", "content": f"RESULT{number}"}


def find_traits(run: Run, format: ChatFormat) -> Traits:
    """Try the template on small conversations.

    Args:
        run: Renders the template.
        format: How the model marks reasoning and tool calls.

    Returns:
        What the template supports.

    Raises:
        LimitError: The template exceeded a limit.
    """
    return _Trial(run, format).traits()


class _Trial:
    def __init__(self, run: Run, format: ChatFormat) -> None:
        self._run = run
        self._found = Traits(format)
        self._user: dict[str, Any] = {"role": "user", "content": "QUESTION"}

    def _shown(self, *messages: dict[str, Any], **variables: Any) -> str:
        """Return the prompt for these messages; "" if the template refuses them or fails on them."""
        try:
            return self._run({"messages": list(messages), **variables}, self._found.no_tools)
        except (RefusalError, FailureError):
            return ""

    def _shows(self, expected: Sequence[str], *messages: dict[str, Any], **variables: Any) -> bool:
        """Return whether the prompt contains all the expected texts, in this order."""
        text, at = self._shown(*messages, **variables), 0
        for part in expected:
            at = text.find(part, at)
            if at < 0:
                return False
        return True

    def traits(self) -> Traits:
        found = self._found
        user = self._user
        parts = {"role": "user", "content": [{"type": "text", "text": "QUESTION"}]}
        if not (self._shown(user) or self._shown(parts)):
            found.no_tools = []  # some templates iterate over `tools` without checking whether it is set
        in_parts = self._shown(parts)
        found.parts = "QUESTION" in in_parts and "'type'" not in in_parts
        found.only_parts = found.parts and "QUESTION" not in self._shown(user)
        if found.only_parts:
            self._user = user = parts
        found.system = "SYSTEM" in self._shown({"role": "system", "content": self._content("SYSTEM")}, user)
        with_tools = self._shown(user, tools=[_TOOL])
        found.tools = "TOOL" in with_tools
        found.parameters = "KEY" in with_tools
        self._find_calls()
        self._find_reasoning()
        on, off = (self._shown(user, **reasoning_variables(value)) for value in (True, False))
        found.reasoning_toggle = on != off
        low, high = (self._shown(user, reasoning_effort=effort) for effort in ("low", "high"))
        found.reasoning_effort = low != high
        return found

    def _content(self, text: str) -> Any:
        return [{"type": "text", "text": text}] if self._found.only_parts else text

    def _find_calls(self) -> None:
        found = self._found
        for found.arguments_as_text, found.no_content in ((False, ""), (False, None), (True, ""), (True, None)):
            if self._knows_calls(("call00001",)):
                found.tool_calls = True
                break
        else:
            found.arguments_as_text, found.no_content = False, ""
            answer = {"role": "assistant", "content": self._content("ANSWER")}
            result = _result(1, "call00001") | {"content": self._content("RESULT1")}
            found.tool_role = self._shows(("ANSWER", "RESULT1"), self._user, answer, result, tools=[_TOOL])
            found.tools &= self._found.format.openers != GENERIC_OPENERS
            return
        found.one_call_each = not self._knows_calls(("call00001", "call00002"))
        if not self._knows_calls(("1",)):
            found.ids = "nine_or_more" if self._knows_calls(("call_0123456789",)) else "nine"
        elif not self._knows_calls(("call_0123456789",)):
            found.ids = "nine"
        harmony = found.format.harmony
        found.text_apart = not harmony and not self._shows(("BESIDE", "VALUE1"), *self._beside(), tools=[_TOOL])
        found.text_marked = harmony and not self._shows(
            ("THOUGHT", "<|channel|>commentary<|message|>BESIDE", "VALUE1"), *self._beside(thinks=True), tools=[_TOOL]
        )
        if not found.tools or self._reads_back():
            return
        if self._reads_back("functions.TOOL1:0"):
            found.ids = "with_name"
        else:
            _log.info("the chat template writes tool calls in an unknown notation, so the generic prompt is used")
            found.tools = False

    def _assistant(self, ids: Sequence[str], content: Any) -> dict[str, Any]:
        calls = [_call(number, id) for number, id in enumerate(ids, 1)]
        tool_calls = written_calls(calls, self._found.arguments_as_text)
        return {"role": "assistant", "content": content, "tool_calls": tool_calls}

    def _knows_calls(self, ids: Sequence[str]) -> bool:
        message = self._assistant(ids, self._found.no_content)
        results = [_result(number, id) for number, id in enumerate(ids, 1)]
        text = self._shown(self._user, message, *results, tools=[_TOOL])
        return all(f"{word}{n}" in text for word in ("TOOL", "VALUE", "RESULT") for n in range(1, len(ids) + 1))

    def _beside(self, thinks: bool = False) -> list[dict[str, Any]]:
        call = self._assistant(("call00001",), self._content("BESIDE"))
        return [self._user, call | (_THOUGHT if thinks else {}), _result(1, "call00001")]

    def _find_reasoning(self) -> None:
        """Find out in which form the template shows the reasoning of earlier messages."""
        found = self._found
        parts = [{"type": "thinking", "thinking": "THOUGHT"}, {"type": "text", "text": "ANSWER"}]
        text = self._shown(self._user, {"role": "assistant", "content": parts}, self._user)
        found.thinking_parts = "THOUGHT" in text and "ANSWER" in text and "'type'" not in text and '"type"' not in text
        if found.text_apart:
            beside = {"role": "assistant", "content": self._content("BESIDE"), **_THOUGHT}
            call = self._assistant(("call00001",), found.no_content)
            result = _result(1, "call00001")
            found.reasoning_with_calls = not self._shows(
                ("THOUGHT",), self._user, beside, call, result, tools=[_TOOL]
            ) and self._shows(("THOUGHT", "VALUE1"), self._user, call | _THOUGHT, result, tools=[_TOOL])

    def _reads_back(self, id: str = "call00001") -> bool:
        """Return whether a call that the template writes can be read back. Store the format that reads it."""
        before = self._shown(self._user, tools=[_TOOL])
        call = self._assistant((id,), self._found.no_content)
        written = self._written(before, call)
        own = with_values_as_written(replace(self._found.format, response=None), written, _CALLED, {"KEY": "VALUE1"})
        by_template = replace(own, response=self._found.format.response)
        self._found.format = own
        if by_template.response is not None:
            lines = "\nVALUE1\n"
            on_lines = self._written(before, _with_value(call, lines))
            if _reads(by_template, written, "VALUE1", before) and (
                _reads(by_template, on_lines, lines, before) or not _reads(own, on_lines, lines)
            ):
                self._found.format = by_template
                return True
            _log.info("the model's response_template is not used: it does not read the calls of its chat template")
        return _reads(own, written, "VALUE1")

    def _written(self, before: str, call: dict[str, Any]) -> str:
        return _beyond(before, self._shown(self._user, call, tools=[_TOOL], add_generation_prompt=False))


def _reads(format: ChatFormat, written: str, value: str, prompt: str = "") -> bool:
    """Return whether a format reads a call with exactly this value."""
    try:
        if format.response is not None:
            format = replace(format, beginning=format.response.beginning(prompt))
        output = chat_output(format, tools=[_CALLED])
        tokens = [*output.push(written.encode("utf-8", "replace")), *output.finish()]
    except GenerationError:  # an expression of the response template takes too long
        return False
    found = join_tool_calls(token.tool_call for token in tokens if token.tool_call is not None)
    return [(call.name, call.arguments) for call in found] == [("TOOL1", {"KEY": value})]


def _with_value(message: Any, value: str) -> Any:
    """Return a copy of a message with another value of the argument, which may be part of JSON text."""
    if isinstance(message, str):
        return message.replace("VALUE1", json.dumps(value)[1:-1] if message.startswith("{") else value)
    if isinstance(message, Mapping):
        return {key: _with_value(inner, value) for key, inner in message.items()}
    return [_with_value(inner, value) for inner in message] if isinstance(message, list) else message


def _beyond(prompt: str, text: str) -> str:
    """Return the part of `text` after `prompt`, or else after their common prefix.

    If the common prefix ends inside a tag, the part begins with that tag.
    """
    if text.startswith(prompt):
        return text[len(prompt) :]
    pairs = enumerate(zip(prompt, text, strict=False))
    shared = next((place for place, (one, other) in pairs if one != other), min(len(prompt), len(text)))
    tag = max(text.rfind("<", 0, shared), text.rfind("[", 0, shared))
    return text[shared if tag < 0 or ">" in text[tag:shared] or "]" in text[tag:shared] else tag :]
