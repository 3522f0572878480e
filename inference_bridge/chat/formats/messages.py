# SPDX-License-Identifier: Apache-2.0
"""Outputs that are made of messages with headers: Harmony (gpt-oss), Muse, Functionary.

Harmony:

    <|channel|>analysis<|message|>…<|end|>
    <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{…}<|call|>
    <|start|>assistant<|channel|>final<|message|>…<|return|>

The prompt ends with `<|start|>assistant`. "final", and "commentary" to nobody, are text; what
is addressed to `functions.` is a tool call. "analysis" is reasoning, as is what is addressed
to one of the built-in tools (python, browser), which nobody offered, and what has a header
that isn't known.

Muse has recipients alone, `to=self<|message|>` before reasoning and `to=user<|message|>`
before the answer. Functionary 3.2 has a line with the recipient, `>>>all` before the answer.

Source: the harmony response format, https://developers.openai.com/cookbook/articles/openai-harmony
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ...types import TokenKind, Tool
from ..assembler import Matcher
from ..reader import NoCallError, Reader, Steps
from .tagged_calls import invoke

_HEADER_LIMIT = 1000
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w*)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
# A header that the end of the text cuts off, and nothing else.
_CUT = re.compile(
    r"(<\|start\|>\w*)?\s*(to=[^\s<]*)?\s*(<\|channel\|>\s*\w*\s*(to=[^\s<]*)?\s*(<\|constrain\|>)?\s*\w*)?(<[|\w]*)?"
)
# What no header has: it belongs to a message.
_MESSAGE = re.compile(r"<[^|]|[{}\n]")
# What of a header that never comes to its end is markup.
_SPOILT = re.compile(r"(<\|start\|>\w*)?\s*(to=[^\s<]*)?\s*(<\|channel\|>|<\|message\|>)?")


class HarmonyReader(Reader):
    """Reads Harmony; with `tools`, calls are read too. The constructor is Reader's."""

    ends: tuple[str, ...] = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>")
    header: tuple[str, ...] = ("<|channel|>", "<|start|>", "<|message|>", "to=")

    def read(self) -> Steps[None]:
        self._ends = Matcher(self.ends)
        while not self.ended or self.at < len(self.text):
            yield from self._message()

    def _message(self) -> Steps[None]:
        self.phase = "opening"
        header = yield from self._header()
        to = _recipient(header)
        kind = self.header_kind(header, to)
        self.kind = kind
        if self.schemas and (yield from self._call(to)):
            kind = "text"
        self.phase = "reasoning" if kind == "reasoning" else "answer"
        found = yield from self.region(kind, self._ends, trims=False)
        if found in ("<|start|>", "<|channel|>"):
            self.at -= len(found)
        self.drop()
        self.forget_most()

    def header_kind(self, header: str, to: str) -> TokenKind:
        """What a message with this header is; "" is a message without one."""
        # Of a header with several channels the last one counts.
        channels = _CHANNEL.findall(header)
        if (channels and channels[-1] not in ("final", "commentary")) or to not in ("", "assistant"):
            return "reasoning"
        return "text"

    def _header(self) -> Steps[str]:
        """What stands before the message; "" where there is no header, but text at once."""
        begun = ""
        spoilt = None
        yield from self.space()
        start = self.at
        try:
            begun = yield from self.expect(*self.header)
            self.at = start
            # Within the limit, not within the text that is there: where the pieces end is to make no difference.
            while (end := self.text.find("<|message|>", start, start + _HEADER_LIMIT)) < 0:
                spoilt = self._spoilt(start + _HEADER_LIMIT)
                if spoilt is not None or len(self.text) - start >= _HEADER_LIMIT:
                    raise NoCallError
                yield from self.more()
            spoilt = self._spoilt(end + 1)  # with the "<" behind it: a "<" before it has spoilt the header by then
            if spoilt is not None:
                raise NoCallError
        except NoCallError:
            if begun == "to=" or not begun:
                self.at = self.pos
                return ""
            # What follows the place that spoils it is not looked at: it may not have been there yet.
            rest = self.text[start : spoilt or start + _HEADER_LIMIT]
            if self.ended and len(self.text) - start < _HEADER_LIMIT and _CUT.fullmatch(rest):
                self.at = len(self.text)  # the answer breaks off inside a header
                self.drop()
                return begun
            header = _SPOILT.match(rest)[0]  # type: ignore[index]
            self.at = start + len(header)  # what follows a channel's tag is a thought, not the answer
            self.drop()
            return header
        self.at = end + len("<|message|>")
        self.drop()
        return self.text[start:end]

    def _spoilt(self, end: int) -> int | None:
        """The end of what shows first that this is not a header: text of a message, or a message's end."""
        found = _MESSAGE.search(self.text, self.at, end)
        places = [found.end()] if found is not None else []
        for mark in self.ends[:3]:
            at = self.text.find(mark, self.at, end)
            if at >= 0:
                places.append(at + len(mark))
        return min(places, default=None)

    def _call(self, to: str) -> Steps[bool]:
        """Past a tool call to this recipient, if the message is one."""
        if not (to.startswith("functions.") or to in self.schemas):
            return False
        self.phase = "call"
        self.keep()
        try:
            yield from self.space()
            if (yield from self.peek()) != "{":
                raise NoCallError
            self.begin_call(to.removeprefix("functions."))
            yield from self.stream_object()
            yield from self.drop_space()
            self.settle()
        except NoCallError:
            self.give_back("text")
        return True


class MuseReader(HarmonyReader):
    """Reads Muse; with `tools`, calls are read too. The constructor is Reader's."""

    ends = ("<|eom|>", "<|eot|>", "<|end_of_text|>", "<|start|>", "<|channel|>")
    header = ("<|start|>", "<|message|>", "to=")

    def header_kind(self, header: str, to: str) -> TokenKind:
        return "reasoning" if to == "self" else "text"

    def _call(self, to: str) -> Steps[bool]:
        if to == "self":
            return False
        yield from self.message_calls(self._function_calls())
        return True

    def _function_calls(self) -> Steps[None]:
        yield from self.space()
        yield from self.expect("<atem:function_calls>")
        self.phase = "call"
        yield from invoke(self, "atem:", "function_calls")


class FunctionaryReader(Reader):
    """Reads Functionary 3.2: `>>>`, a recipient and a line break before each message.

    The prompt ends with the first `>>>`. The constructor is Reader's.
    """

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._marks = Matcher((">>>",))
        super().__init__(tools)

    def read(self) -> Steps[None]:
        while not self.ended or self.at < len(self.text):
            self.phase = "opening"
            yield from self._recipient()
            self.phase = "answer"
            if not (yield from self.region("text", self._marks, trims=False)):
                return

    def _recipient(self) -> Steps[None]:
        """Past the line with the recipient, and past its arguments if it is a tool. It is text if it is neither."""
        self.keep()
        calls = self.calls
        try:
            yield from self.option(">>>")
            name = yield from self.word()
            while not self.text.startswith("\n", self.at):
                if self.at < len(self.text):
                    raise NoCallError
                yield from self.more()
            self.at += 1
            if name == "all":
                self.drop()
            elif name in self.schemas:
                yield from self._arguments(name)
            else:
                raise NoCallError
            self.settle()
        except NoCallError:
            if self.calls > calls:
                self.give_back("text")
            else:
                self.settle()
                self.give("text", self.at)

    def _arguments(self, name: str) -> Steps[None]:
        yield from self.space()
        if (yield from self.peek()) != "{":
            raise NoCallError
        self.phase = "call"
        self.begin_call(name)
        yield from self.stream_object()
        yield from self.drop_space()


def _recipient(header: str) -> str:
    recipients = _RECIPIENT.findall(header)
    return str(recipients[-1]) if recipients else ""
