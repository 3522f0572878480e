# SPDX-License-Identifier: Apache-2.0
"""The longest time for which an event loop stands still beside each operation that has much to read.

Timings on a busy machine mean little: run it on an idle machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import inference_bridge as ib

TARGET = 0.020
"""Seconds that the contract allows (behaviour 11)."""

_UNION = {"anyOf": [{"type": "string", "format": format} for format in ("uri", "ipv6", "date-time")]}
_UNIONS = {
    "type": "object",
    "properties": {f"q{number}": _UNION for number in range(150)},
    "required": [f"q{number}" for number in range(150)],
}
_CONSTANTS = {"oneOf": [{"const": f"constant {number}"} for number in range(3000)]}
_TEXT = "the quick brown fox jumps over the lazy dog. "


def _operations(model: ib.TextModel) -> dict[str, Callable[[], Awaitable[Any]]]:
    user = {"role": "user", "content": "x"}
    turns = [{"role": ("user", "assistant")[place % 2], "content": "hi"} for place in range(100_001)]
    return {
        "nothing": lambda: asyncio.sleep(0.2),
        "a short chat": lambda: model.achat([user], max_tokens=2).result(),
        "0.99 MB of special-token names": lambda: model.agenerate("<|im_end|>x" * 90_000, max_tokens=1).result(),
        "the same, counted": lambda: model.acount_tokens("<|im_end|>x" * 90_000),
        "0.5 MB of text, counted": lambda: model.acount_tokens(_TEXT * 11_000),
        "0.5 MB of text": lambda: model.agenerate(_TEXT * 11_000, max_tokens=1).result(),
        "a schema of 150 unions": lambda: model.achat([user], json_schema=_UNIONS, max_tokens=1).result(),
        "oneOf of 3,000 constants": lambda: model.achat([user], json_schema=_CONSTANTS, max_tokens=1).result(),
        "100,000 chat messages": lambda: model.achat(turns, max_tokens=1).result(),
    }


async def _longest_stop(operation: Callable[[], Awaitable[Any]]) -> tuple[float, int, str]:
    """(seconds, turns of the loop, what came of the operation), with a ticker of 1 ms beside it."""
    longest, turns = 0.0, 0

    async def tick() -> None:
        nonlocal longest, turns
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, turns, last = max(longest, now - last), turns + 1, now

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    longest, turns, outcome = 0.0, 0, "done"
    try:
        await operation()
    except ib.BridgeError as error:
        outcome = type(error).__name__
    await asyncio.sleep(0.005)  # a stop at the very end is seen when the ticker wakes up
    ticker.cancel()
    return longest, turns, outcome


def run(source: str, backend: str) -> int:
    """Print each operation's longest stop. Returns how many are over the target."""

    async def trials() -> int:
        over = 0
        with ib.load_model(source, backend=backend, context_length=1024, parallel_slots=1) as model:
            for name, operation in _operations(model).items():
                longest, turns, outcome = await _longest_stop(operation)
                over += longest > TARGET
                print(f"{name:32} {longest * 1000:8.1f} ms  {turns:7,} turns  {outcome}", flush=True)
        return over

    return asyncio.run(trials())
