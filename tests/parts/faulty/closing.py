# SPDX-License-Identifier: Apache-2.0
"""Models whose operations fail if they are concurrent with close()."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from inference_bridge.streams import TokenStream
from inference_bridge.types import Ranked

from .models import Sound


class UsesWhatIsFreed(Sound):
    """A running call uses an object after close() has freed it: an error here, a crash of the process in C."""

    def __init__(self) -> None:
        super().__init__()
        self.native: list[str] = ["vocabulary"]

    def count_tokens(self, text: str) -> int:
        count = super().count_tokens(text)
        time.sleep(0.001)
        return count * len(self.native[0]) // len(self.native[0])

    def close(self) -> None:
        self.native.clear()


class CountsNothingOnceClosed(Sound):
    """A call that meets closing gives a wrong result."""

    def count_tokens(self, text: str) -> int:
        count = super().count_tokens(text)
        time.sleep(0.001)
        return 0 if self.closed else count


class CountsAfterClosing(Sound):
    def count_tokens(self, text: str) -> int:
        return len(text.encode())


class CancelsItsCallers(Sound):
    """Closing cancels the tasks that have called it, whatever they do by then."""

    def __init__(self) -> None:
        super().__init__()
        self.callers: list[tuple[Any, Any]] = []

    async def acount_tokens(self, text: str) -> int:
        self.callers.append((asyncio.get_running_loop(), asyncio.current_task()))
        return self.count_tokens(text)

    def close(self) -> None:
        for loop, task in self.callers:
            loop.call_soon_threadsafe(task.cancel)


class HangsInATaskOnceClosed(Sound):
    """A task that waits when the model is closed is never woken."""

    async def acount_tokens(self, text: str) -> int:
        count = self.count_tokens(text)
        await asyncio.sleep(0.001)
        if self.closed:
            await asyncio.Event().wait()
        return count


class RanksWhatIsFreed(Sound):
    """The table that ranking uses is freed while a call uses it."""

    capabilities = Sound.capabilities | {"rerank"}

    def __init__(self) -> None:
        super().__init__()
        self.native: list[str] = ["vocabulary"]

    def rerank(self, query: str, documents: Sequence[str]) -> list[Ranked]:
        self._check_open()
        time.sleep(0.001)
        return [Ranked(index, len(self.native[0])) for index, _ in enumerate(documents)]

    async def arerank(self, query: str, documents: Sequence[str]) -> list[Ranked]:
        return await asyncio.to_thread(self.rerank, query, documents)

    def close(self) -> None:
        self.native.clear()


class InfillsAfterClosing(Sound):
    capabilities = Sound.capabilities | {"infill"}

    def infill(self, prefix: str, suffix: str, config: Any = None, **options: Any) -> TokenStream:
        return Sound().generate((prefix + suffix)[:100], config, **options)

    def ainfill(self, prefix: str, suffix: str, config: Any = None, **options: Any) -> Any:
        return Sound().agenerate((prefix + suffix)[:100], config, **options)
