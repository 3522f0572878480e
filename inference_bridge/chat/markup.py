# SPDX-License-Identifier: Apache-2.0
"""Separates a chat model's output into answer, reasoning and tool calls.

`detect_format` finds out from a chat template how its model marks them. `chat_output` returns
the `Output` that takes one model token after the other and makes Tokens of kind "text",
"reasoning" and "tool_call". No Token's text contains the markup, or the white space between
the markup and the text that it marks.

The parser must see the markup, so the caller renders special tokens as text (`<|tool_call>` and
similar tags are special tokens in many vocabularies). Only end tokens are not rendered.

No text is lost: a passage that looks like a tool call but is not one becomes text. A
call is streamed as soon as its name and the beginning of its arguments have arrived. If it turns out to be
invalid or incomplete later, all its characters follow as text, and `tool_calls` does not contain the call.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..types import TokenKind, Tool, join_tool_calls
from .assembler import Matcher, TextAssembler, matcher
from .formats import (
    FAMILIES,
    GENERIC_OPENERS,
    OPENERS,
    THINKING,
    CallReader,
    ChatFormat,
    Thinking,
    detect_format,
)
from .formats.messages import HarmonyReader
from .formats.python_calls import python_or_json
from .formats.response_reader import ResponseReader
from .reader import HOLD_LIMIT, NoCallError, Reader, Steps, ValueStyle, call_id, short_call_id

__all__ = [
    "GENERIC_OPENERS",
    "OPENERS",
    "THINKING",
    "ChatFormat",
    "MarkupParser",
    "Thinking",
    "chat_output",
    "detect_format",
    "with_values_as_written",
]

_log = logging.getLogger(__name__)

# Text that looks like the markup of a model family.
_MARKUP = re.compile(
    r"<\|[\w/:.]{2,40}\|>|</?[\w:|-]{0,20}(?:tool_?calls?|function_?calls?|invoke)\b[^<>]{0,20}>|\[/?TOOL_\w{2,20}\]"
)
_IN_TAG = re.compile(r"[<\[][^\s<>\[\]]{0,58}\Z")
# Tags that were reported already. Their number is limited, because a model may write a different wrong tag each time.
_reported: set[str] = set()
_MAX_REPORTED = 20


def chat_output(
    format: ChatFormat,
    *,
    stops: Sequence[str] = (),
    tools: Iterable[Tool] = (),
    in_reasoning: bool = False,
    in_answer: bool = False,
    forced_call: bool = False,
) -> TextAssembler:
    """Return the object that turns the model tokens of one chat into Tokens.

    Args:
        format: How the model marks reasoning and tool calls.
        stops: Stop strings. Only visible text is searched for them.
        tools: The tools that may be called. Without tools no call is read; with tool_choice "none" pass no tools.
        in_reasoning: The prompt ends inside reasoning.
        in_answer: The prompt ends after reasoning.
        forced_call: Constrained decoding makes the answer a call, as plain JSON without tags:
            `{"name": …, "arguments": {…}}`, or an array.
    """
    if format.response is not None and not forced_call:
        return TextAssembler(stops, ResponseReader(format.response, format.beginning, tools, format.short_ids))
    if format.harmony:
        return TextAssembler(stops, HarmonyReader(tools))
    family = FAMILIES.get(format.output)
    if family is not None and family.output is not None and not forced_call:
        return TextAssembler(stops, family.output(tools))
    parser = MarkupParser(format, tools, in_reasoning=in_reasoning, in_answer=in_answer, forced_call=forced_call)
    return TextAssembler(stops, parser)


def with_values_as_written(format: ChatFormat, written: str, tool: Tool, arguments: dict[str, Any]) -> ChatFormat:
    """Find out how a template writes values between tags: directly, or on lines of their own.

    Args:
        format: The format that was detected.
        written: A call of `tool` as the template writes it.
        tool: The tool.
        arguments: The call's arguments.

    Returns:
        The format with the style that reads the call back exactly. It is `format` itself if neither style does, or if
        the call has no values between tags.
    """
    exact = [(tool.name, arguments)]
    padded = written
    for value in arguments.values():
        padded = padded.replace(str(value), f"\n{value}\n")
    if _calls(format, "inline", padded, tool) == _calls(format, "lines", padded, tool):
        return format  # line breaks around the values make no difference, so the values are not between tags
    styles: tuple[ValueStyle, ...] = ("inline", "lines")
    for style in styles:
        if _calls(format, style, written, tool) == exact:
            return replace(format, values=style)
    return format


def _calls(format: ChatFormat, style: ValueStyle, written: str, tool: Tool) -> list[tuple[str, dict[str, Any]]]:
    output = chat_output(replace(format, values=style), tools=[tool])
    tokens = [*output.push(written.encode("utf-8", "replace")), *output.finish()]
    calls = join_tool_calls(token.tool_call for token in tokens if token.tool_call is not None)
    return [(call.name, call.arguments) for call in calls]


class MarkupParser(Reader):
    """Reads outputs that consist of text with tags.

    Args:
        format: How the model marks reasoning and tool calls.
        tools: The tools that may be called.
        in_reasoning: The output begins inside reasoning.
        in_answer: The output begins after reasoning.
        forced_call: The answer is a call, as plain JSON without tags.
    """

    def __init__(
        self,
        format: ChatFormat,
        tools: Iterable[Tool] = (),
        *,
        in_reasoning: bool = False,
        in_answer: bool = False,
        forced_call: bool = False,
    ) -> None:
        super().__init__(tools, short_call_id if format.short_ids else call_id, format.values)
        tags = format.thinking
        self.phase = "answer" if in_answer or tags is None else "opening"
        self._reasoning = tags is not None and (in_reasoning or (tags.implied and not in_answer))
        # Models that decide for themselves whether to reason may begin with the closing tag, to say that they do not.
        self._unclosed = tags is not None and not self._reasoning
        self._bare = forced_call or (format.bare and bool(self.schemas))
        self._openers = format.openers if self.schemas and not forced_call else ()
        self._around = () if forced_call else format.answer
        self._hidden = tuple(
            mark for answer in self._around if answer.anywhere for mark in (answer.opens, answer.closes) if mark
        )
        self._closing = ""
        self._shown = ""
        self._looked = (0, 0, "")
        self.noticed = frozenset("<[") if self.schemas else frozenset()
        pairs = tags.pairs if tags is not None else ()
        self._opens = tuple(opens for opens, _ in pairs)
        self._closes = tuple(closes for _, closes in pairs)
        always = (*self._opens, *self._closes) if tags is not None and tags.anywhere else ()
        self._always = (*self._openers, *always, *self._hidden)
        self._reasoning_markers = matcher((*self._closes, *self._openers))

    def read(self) -> Steps[None]:
        opening = not self._reasoning
        if self._reasoning:
            self.phase = self.kind = "reasoning"
            yield from self.drop_space()
            if (yield from self.option(*self._opens)):
                yield from self.drop_space()
        while True:
            if opening:
                self._reasoning = yield from self._opening()
            self.phase = "reasoning" if self._reasoning else "answer"
            if self._reasoning:
                found = yield from self.region("reasoning", self._reasoning_markers, True)
            else:
                marks = (*self._always, self._closing) if self._closing else self._always
                found = yield from self.region("text", matcher(marks), bool(marks))
            if not found:
                return
            if self._reasoning and found in self._closes:
                opening = yield from self._tag(found)
            elif found in self._openers:
                opening = yield from (self._draft(found) if self._reasoning else self._call(OPENERS[found]))
            elif found == self._closing or found in self._hidden:
                yield from self._hide(found)
                opening = found in self._hidden and self.phase == "answer"
            else:
                opening = yield from self._tag(found)

    def rewind(self) -> None:
        super().rewind()
        self._looked = (0, 0, "")

    def in_tag(self) -> bool:
        return _IN_TAG.search(self._shown) is not None

    def give(self, kind: TokenKind, end: int) -> None:
        if kind == "text" and self.schemas and end > self.pos:
            # A tag may arrive in several pieces.
            self._shown = self._shown[-60:] + self.text[self.pos : end]
            for match in _MARKUP.finditer(self._shown):
                if len(_reported) >= _MAX_REPORTED or match[0] in _reported:
                    continue
                if not match[0].replace("/", "").startswith(self._openers):
                    _reported.add(match[0])
                    _log.warning(
                        "the answer contains markup that no parser knows: %r. If it is a tool call, register its "
                        "notation with register_chat_format (inference_bridge.authoring)",
                        match[0],
                    )
        super().give(kind, end)

    def _hide(self, tag: str) -> Steps[None]:
        """Read past a tag around the answer, and hide it."""
        if tag == self._closing:
            self._closing = ""
        self.drop()
        yield from self.drop_space()

    def _tag(self, tag: str) -> Steps[bool]:
        """Read past a tag around reasoning. Return whether the answer may begin now."""
        opens = tag in self._opens
        if not (opens or self._reasoning or self._unclosed):
            self.give("text", self.at - len(tag))  # the tag closes nothing: no reasoning is open
            self.drop()
            return False
        self.drop()
        self._reasoning = opens
        self._unclosed = False
        self.kind = "reasoning" if opens else "text"
        self.phase = "reasoning" if opens else "answer"
        yield from self.drop_space()
        return not self._reasoning

    def _opening(self) -> Steps[bool]:
        """Read what only the beginning of an answer may contain: tags, and a call without a tag before it.

        Return whether reasoning begins.
        """
        self.kind = "text"
        before = {answer.opens: answer.closes for answer in self._around if not answer.anywhere}
        while self._opens or before or self._bare or self._hidden:
            yield from self.space()
            # The closing tag may also come first in the output, or after a call inside unclosed reasoning.
            closes = self._closes if self._unclosed else ()
            tag = yield from self.option(*self._opens, *closes, *before, *self._hidden)
            if tag in before:
                self._closing = before[tag]
                before = {}
                yield from self._hide("")
                continue
            if tag in self._hidden and tag:
                yield from self._hide(tag)
                continue
            if tag:
                yield from self._tag(tag)
                if self._reasoning:
                    return True
                continue
            bare = self._bare and self.text.startswith(("{", "["), self.at)
            if not bare or not (yield from self._call(_bare_calls)):
                break
        self.at = self.pos
        self._unclosed = False
        return False

    def _call(self, read: CallReader) -> Steps[bool]:
        """Read a tool call. Return False if the text is not a call: the part that was read becomes text."""
        self.forget_most()
        calls, body, phase = self.calls, self.at, self.phase
        self.phase = "call"
        self.keep()
        try:
            yield from read(self)
        except NoCallError:
            if self.calls == calls:
                self.phase = phase
                self.settle()
                self.give(self.kind, body)
                self.at = self.pos
                return False
            if self.ended:
                self.at = len(self.text)
            self.give_back(self.kind)
            self.phase = phase
            return False
        self.settle()
        if self.calls == calls:
            self.phase = phase
            self.give(self.kind, body)
            self.at = self.pos
            return False
        self.at = self.pos
        self._unclosed = self._unclosed or self._reasoning
        self._reasoning = False
        self.kind = "text"
        self.phase = "answer"
        yield from self.drop_space()
        return True

    def _closing_tag(self, marks: Matcher) -> tuple[int, str]:
        """Return the offset in the output at which the next closing tag of reasoning ends, and the tag; "" for none.

        The result is cached: otherwise each of several calls in reasoning would search all the undecided text.
        """
        node, seen, found = self._looked
        if seen < self._origin + self.at:
            node, seen, found = 0, self._origin + self.at, ""
        if not found:
            node, end, found = marks.scan(node, self.text, seen - self._origin)
            seen = self._origin + end
        self._looked = node, seen, found
        return seen, found

    def _draft(self, opener: str) -> Steps[bool]:
        """Read a possible call inside reasoning, after its opener. Return whether the answer may begin now.

        The text is part of the reasoning if the closing tag of reasoning follows, and a call if that tag never
        follows. So a call that can be read is set aside until one of the two is certain.
        """
        marks = matcher(self._closes)
        begin = self.at - self.pos
        self.set_aside()
        last = self._aside_from + HOLD_LIMIT
        steps = OPENERS[opener](self)
        broken = False
        done = False
        while True:
            seen, found = self._closing_tag(marks)
            if found and seen <= last:
                break
            found = ""
            if not done:
                try:
                    next(steps)
                except StopIteration:
                    done = True
                except NoCallError:
                    broken = True
                    break
            if self.ended or self.aside_size() > HOLD_LIMIT:
                break
            if done:
                self.at = self.pos = len(self.text)
                self.forget()
                self._wakes = marks.ends
            yield
        steps.close()
        begun = self.calls > self._aside_calls
        reached = self._origin + self.at - self._aside_from
        held = self.aside_size()
        self.take_back()
        if found:
            self.at = seen - self._origin
            clear = self.pos + len(self.text[self.pos : self.at - len(found)].rstrip())
            self.give("reasoning", clear)
            return (yield from self._tag(found))
        # The whole output may arrive at once: the result must be the same as if it had arrived in pieces.
        broken = broken and reached <= HOLD_LIMIT
        if broken or held > HOLD_LIMIT:
            # The text of a broken call is not parsed a second time.
            stop = min(reached, held) if broken and begun else begin
            if not broken:
                stop = max(begin, HOLD_LIMIT - max(map(len, self._closes)))
            if broken and begun and self.ended:
                stop = held
            self.give("reasoning", self.pos + stop)
            self.at = self.pos
            return False
        self.at = self.pos + begin
        return (yield from self._call(OPENERS[opener]))


def _bare_calls(reader: Reader) -> Steps[None]:
    yield from python_or_json(reader, known=True)
