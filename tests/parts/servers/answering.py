# SPDX-License-Identifier: Apache-2.0
"""Models whose answers have every kind of token, or break off, and the events in which a server sends them."""

from __future__ import annotations

import json
from collections.abc import Iterator
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


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
