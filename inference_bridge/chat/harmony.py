# SPDX-License-Identifier: Apache-2.0
"""Harmony, the output of gpt-oss: messages on channels, each under a header.

    <|channel|>analysis<|message|>…<|end|>
    <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{…}<|call|>
    <|start|>assistant<|channel|>final<|message|>…<|return|>

The prompt ends with `<|start|>assistant`. "analysis" is reasoning; "final", and
"commentary" to nobody, are text; what is addressed to `functions.` is a tool call, what to
one of the built-in tools (python, browser), which nobody offered, counts as reasoning.

Source: the harmony response format, https://developers.openai.com/cookbook/articles/openai-harmony
"""

from __future__ import annotations

import re

from ..types import TokenKind
from .assembler import Matcher
from .reader import NoCallError, Reader, Steps

_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>")
_END_MATCHER = Matcher(_ENDS)
_HEADER = ("<|channel|>", "<|start|>", "<|message|>", "to=")
_HEADER_LIMIT = 1000

_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")


class HarmonyParser(Reader):
    """Reads Harmony; with `tools`, calls are read too. The constructor is Reader's."""

    def read(self) -> Steps[None]:
        while not self.ended or self.at < len(self.text):
            yield from self._message()

    def _message(self) -> Steps[None]:
        self.phase = "opening"
        header = yield from self._header()
        channel = _CHANNEL.search(header)
        recipient = _RECIPIENT.search(header)
        to = recipient[1] if recipient else ""
        kind: TokenKind = "text"
        if (channel and channel[1] == "analysis") or to not in ("", "assistant"):
            kind = "reasoning"
        self.kind = kind
        if self.schemas and (to.startswith("functions.") or to in self.schemas):
            yield from self._call(to.removeprefix("functions."))
            kind = "text"
        self.phase = "reasoning" if kind == "reasoning" else "answer"
        found = yield from self.region(kind, _END_MATCHER, trims=False)
        if found in ("<|start|>", "<|channel|>"):
            self.at -= len(found)
        self.drop()

    def _header(self) -> Steps[str]:
        """What stands before the message; "" where there is no header, but text at once."""
        begun = ""
        try:
            yield from self.space()
            start = self.at
            begun = yield from self.expect(*_HEADER)
            # Within the limit, not within the text that is there: where the pieces end is to make no difference.
            while (end := self.text.find("<|message|>", start, start + _HEADER_LIMIT)) < 0:
                if len(self.text) - start >= _HEADER_LIMIT:
                    raise NoCallError
                yield from self.more()
        except NoCallError:
            if self.ended and begun.startswith("<|"):
                self.at = len(self.text)  # the answer breaks off inside a header
                self.drop()
            elif not begun:
                self.at = self.pos
            return ""
        self.at = end + len("<|message|>")
        self.drop()
        return self.text[start:end]

    def _call(self, name: str) -> Steps[None]:
        self.phase = "call"
        try:
            yield from self.space()
            if (yield from self.peek()) != "{":
                raise NoCallError
            self.begin_call(name)
            yield from self.stream_object()
            yield from self.drop_space()
        except NoCallError:
            self.at = self.pos
