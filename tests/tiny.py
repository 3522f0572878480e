# SPDX-License-Identifier: Apache-2.0
"""The smallest backend that an author could write, for tests of everything that is not an engine."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import ClassVar

from inference_bridge import Availability, Backend, LoadConfig, ModelInfo, Request, TextModel, Token


class Words(TextModel):
    """Repeats the prompt, or the last message, a word a token."""

    model_type = "words"
    info = ModelInfo(architecture="words", context_length=100)
    capabilities = frozenset[str]()

    def __init__(self, source: str = "", config: LoadConfig | None = None) -> None:
        self.source = source
        self.config = config
        self.closes = 0

    def _run(self, request: Request) -> Iterator[Token]:
        text = request.prompt if request.kind == "generate" else request.messages[-1].text
        for word in re.findall(r"\s*\S+", text):
            yield Token(word)

    def close(self) -> None:
        self.closes += 1


class WordsBackend(Backend):
    """Loads every source that `loads` says yes to, and keeps what it loaded in `loaded`."""

    load_options: ClassVar[frozenset[str] | None] = frozenset({"context_length", "device"})

    def __init__(
        self, name: str = "words", *, missing: str = "", hint: str = "", loads: Callable[[str], bool] = lambda _: True
    ) -> None:
        self.name = name
        self.missing = missing
        self.hint = hint
        self.loads = loads
        self.loaded: list[Words] = []

    def availability(self) -> Availability:
        return Availability(not self.missing, self.missing, self.hint)

    def can_load(self, source: str) -> bool:
        return self.loads(source)

    def load_model(self, source: str, config: LoadConfig) -> TextModel:
        self.loaded.append(Words(source, config))
        return self.loaded[-1]
