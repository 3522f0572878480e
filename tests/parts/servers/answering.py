# SPDX-License-Identifier: Apache-2.0
"""Models whose answers have every kind of token, or break off, and the events in which a server sends them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import inference_bridge as ib

from ..models.tiny import Tiny


class Everything(Tiny):
    """Reasons, answers, and calls two tools."""

    capabilities = frozenset({"chat", "reasoning", "tools"})

    def _run(self, request: ib.Request) -> Iterator[ib.Token]:
        yield ib.Token("hm", kind="reasoning")
        yield ib.Token("…", kind="reasoning")
        yield ib.Token("I look ")
        yield ib.Token("it up. END")
        for index, city in enumerate(("Paris", "Rome")):
            yield ib.Token("", kind="tool_call", tool_call=ib.ToolCallDelta(index, f"call_{index}", "weather", '{"ci'))
            yield ib.Token("", kind="tool_call", tool_call=ib.ToolCallDelta(index, arguments=f'ty": "{city}"}}'))


class Breaks(Everything):
    """Fails after its first token."""

    def _run(self, request: ib.Request) -> Iterator[ib.Token]:
        yield ib.Token("one")
        raise ib.ServerError("it went away")


class Unlikely(Tiny):
    """Answers with a token of probability 0, and an alternative of probability 0. Its other results have `number`."""

    capabilities = frozenset({"chat", "logprobs", "rerank", "embeddings"})
    number = -math.inf

    def _run(self, request: ib.Request) -> Iterator[ib.Token]:
        yield ib.Token("a", 1, self.number, (ib.TopLogprob("b", 2, -0.5), ib.TopLogprob("c", 3, self.number)))

    def rerank(self, query: str, documents: Sequence[str]) -> list[ib.Ranked]:
        return [ib.Ranked(0, self.number)]

    async def arerank(self, query: str, documents: Sequence[str]) -> list[ib.Ranked]:
        return self.rerank(query, documents)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[self.number] for _ in texts]

    async def aembed(self, texts: Sequence[str]) -> list[list[float]]:
        return self.embed(texts)


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
