# SPDX-License-Identifier: Apache-2.0
"""Inkling: messages, each with one kind of content.

    <|message_model|><|content_thinking|>…<|end_message|>
    <|message_model|><|content_text|>…<|end_message|>
    <|message_model|>name<|content_invoke_tool_json|>{"name": …, "args": {…}}<|end_message|>

The prompt ends with `<|message_model|>`. A name may follow before the kind; it is neither text nor part of the call.
`<|content_model_end_sampling|>` ends the output.
"""

from __future__ import annotations

import re

from ..assembler import Matcher
from ..reader import NoCallError, Reader, Steps
from .json_calls import json_calls

_MODEL = "<|message_model|>"
_THINKING = "<|content_thinking|>"
_CALL = "<|content_invoke_tool_json|>"
_KINDS = ("<|content_text|>", _THINKING, _CALL, "<|content_invoke_tool_text|>", "<|content_tool_error|>")
_ENDS = Matcher(("<|end_message|>", "<|content_model_end_sampling|>", _MODEL, *_KINDS))
_NAME = re.compile(r"[\w.:/-]{0,200}")


class InklingReader(Reader):
    """Reads Inkling; with `tools`, calls are read too. The constructor is Reader's."""

    def read(self) -> Steps[None]:
        while not self.ended or self.at < len(self.text):
            self.phase = "opening"
            self.kind = "text"
            kind = yield from self._header()
            self.kind = "reasoning" if kind == _THINKING else "text"
            self.phase = "reasoning" if kind == _THINKING else "answer"
            if kind == _CALL and self.schemas:
                self.phase = "call"
                yield from self.message_calls(json_calls(self, keys=("args", "arguments", "parameters")))
                self.phase = "answer"
            found = yield from self.region(self.kind, _ENDS, trims=False)
            if found in (_MODEL, *_KINDS):
                self.at -= len(found)
            self.drop()
            self.forget_most()

    def _header(self) -> Steps[str]:
        """Read past the header of a message. Return its kind, or "" if the text has no header."""
        try:
            yield from self.space()
            begun = yield from self.option(_MODEL)
            while (end := _NAME.match(self.text, self.at).end()) == len(self.text):  # type: ignore[union-attr]
                if self.ended:
                    break
                yield from self.more()
            if end == len(self.text):
                self.at = end if begun else self.pos  # the output ends after the tag of the role
                self.drop()
                return ""
            self.at = end
            kind = yield from self.expect(*_KINDS)
        except NoCallError:
            self.at = self.pos
            if (yield from self.option(_MODEL)):
                self.drop()
            return ""
        self.drop()
        return kind
