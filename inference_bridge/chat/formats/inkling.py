# SPDX-License-Identifier: Apache-2.0
"""Inkling: messages of one kind of content each.

    <|message_model|><|content_thinking|>…<|end_message|>
    <|message_model|><|content_text|>…<|end_message|>
    <|message_model|>name<|content_invoke_tool_json|>{"name": …, "args": {…}}<|end_message|>

The prompt ends with `<|message_model|>`. A name may stand between it and the kind: it belongs to neither text nor call.
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
        """Past what stands before a message: its kind; "" where there is text at once."""
        try:
            yield from self.space()
            begun = yield from self.option(_MODEL)
            while (end := _NAME.match(self.text, self.at).end()) == len(self.text):  # type: ignore[union-attr]
                if self.ended:
                    break
                yield from self.more()
            if end == len(self.text):
                self.at = end if begun else self.pos  # the output breaks off behind the role's tag
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
