# SPDX-License-Identifier: Apache-2.0
"""The notations of model families: one module for each kind of notation, and the families that use it.

`register_chat_format` adds another family. Other packages import it from
`inference_bridge.authoring`:

    from inference_bridge.authoring import ChatFamily, NoCallError, Reader, Steps, register_chat_format

    def read_call(reader: Reader) -> Steps[None]:
        "Read the text after <call>: a name, a JSON object, and </call>."
        name = yield from reader.word()
        yield from reader.space()
        if (yield from reader.peek()) != "{":
            raise NoCallError
        reader.begin_call(name)
        yield from reader.stream_object()
        yield from reader.space()
        yield from reader.expect("</call>")
        reader.drop()

    register_chat_format(ChatFamily("mine", [["<call>"]], calls={"<call>": read_call}))
"""

from __future__ import annotations

from ..reader import NoCallError, Reader, Steps
from .builtin import THINKING
from .registry import (
    FAMILIES,
    GENERIC_OPENERS,
    OPENERS,
    AnswerTags,
    CallReader,
    ChatFamily,
    ChatFormat,
    Thinking,
    detect_format,
    register_chat_format,
)

__all__ = [
    "FAMILIES",
    "GENERIC_OPENERS",
    "OPENERS",
    "THINKING",
    "AnswerTags",
    "CallReader",
    "ChatFamily",
    "ChatFormat",
    "NoCallError",
    "Reader",
    "Steps",
    "Thinking",
    "detect_format",
    "register_chat_format",
]
