# SPDX-License-Identifier: Apache-2.0
"""Outputs that consist of messages with headers: Harmony (gpt-oss), Muse, Functionary.

Harmony:

    <|channel|>analysis<|message|>…<|end|>
    <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{…}<|call|>
    <|start|>assistant<|channel|>final<|message|>…<|return|>

The prompt ends with `<|start|>assistant`. A message of the channel "final", or of "commentary" without a recipient, is
text. A message to `functions.NAME` is a tool call. All other messages are reasoning: those of "analysis", those to one
of the built-in tools (python, browser), which the caller did not offer, and those with an unknown header.

Muse has only recipients: `to=self<|message|>` before reasoning and `to=user<|message|>` before the answer.
Functionary 3.2 has a line with the recipient: `>>>all` before the answer.

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
# Matches a header that the end of the text cuts off.
_CUT = re.compile(
    r"(<\|start\|>\w*)?\s*(to=[^\s<]*)?\s*(<\|channel\|>\s*\w*\s*(to=[^\s<]*)?\s*(<\|constrain\|>)?\s*\w*)?(<[|\w]*)?"
)
# Characters that a header does not contain. They belong to a message.
_MESSAGE = re.compile(r"<[^|]|[{}\n]")
# The markup at the beginning of a header that has no end.
_INCOMPLETE = re.compile(r"(<\|start\|>\w*)?\s*(to=[^\s<]*)?\s*(<\|channel\|>|<\|message\|>)?")


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
        """Return the kind of a message with this header and recipient; "" stands for a message without them."""
        # If a header has several channels, the last one applies.
        channels = _CHANNEL.findall(header)
        if (channels and channels[-1] not in ("final", "commentary")) or to not in ("", "assistant"):
            return "reasoning"
        return "text"

    def _header(self) -> Steps[str]:
        """Read past the header of a message. Return the header, or "" if the text has none."""
        begun = ""
        stop = None
        yield from self.space()
        start = self.at
        try:
            begun = yield from self.expect(*self.header)
            self.at = start
            # Search up to the limit, so that the result does not depend on how the text is divided into pieces.
            while (end := self.text.find("<|message|>", start, start + _HEADER_LIMIT)) < 0:
                stop = self._header_stop(start + _HEADER_LIMIT)
                if stop is not None or len(self.text) - start >= _HEADER_LIMIT:
                    raise NoCallError
                yield from self.more()
            # The "<" of <|message|> is included, so that a "<" directly before it is found too.
            stop = self._header_stop(end + 1)
            if stop is not None:
                raise NoCallError
        except NoCallError:
            if begun == "to=" or not begun:
                self.at = self.pos
                return ""
            # The text after `stop` is not read: whether it has already arrived depends on the pieces.
            rest = self.text[start : stop or start + _HEADER_LIMIT]
            if self.ended and len(self.text) - start < _HEADER_LIMIT and _CUT.fullmatch(rest):
                self.at = len(self.text)  # the output ends inside a header
                self.drop()
                return begun
            header = _INCOMPLETE.match(rest)[0]  # type: ignore[index]
            self.at = start + len(header)  # text after the tag of a channel is reasoning, not the answer
            self.drop()
            return header
        self.at = end + len("<|message|>")
        self.drop()
        return self.text[start:end]

    def _header_stop(self, end: int) -> int | None:
        """Return where the text turns out not to be a header: after a character or end tag of a message. None: nowhere.

        Args:
            end: The end of the search.
        """
        found = _MESSAGE.search(self.text, self.at, end)
        places = [found.end()] if found is not None else []
        for mark in self.ends[:3]:
            at = self.text.find(mark, self.at, end)
            if at >= 0:
                places.append(at + len(mark))
        return min(places, default=None)

    def _call(self, to: str) -> Steps[bool]:
        """Read past a tool call to this recipient. Return whether the message is addressed to a tool."""
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
        """Read past the line with the recipient, and past the arguments if the recipient is a tool.

        A line with another recipient is text.
        """
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
