# SPDX-License-Identifier: Apache-2.0
"""Threads and tasks at once on one model: each answer is the caller's own, and nothing is left afterwards."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections import Counter
from typing import Any

import psutil

import inference_bridge as ib


def _asked(caller: str, turn: int) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """What a caller asks, and options under which nothing but one answer is right: that of this caller."""
    answer = f"{caller} {turn}"
    return [{"role": "user", "content": f"Say {answer}."}], {"json_schema": {"const": answer}, "max_tokens": 40}


def run(source: str, backend: str, seconds: float, threads: int, tasks: int) -> int:
    """Print how many answers were right and wrong, and what is left afterwards. Returns how many were wrong or left."""
    with ib.load_model(source, backend=backend, context_length=512) as warm:
        warm.generate("abc", max_tokens=1).text()  # permanent objects, such as MLX's worker, exist from here on
    before = _held()
    outcomes: Counter[str] = Counter()
    model = ib.load_model(source, backend=backend, context_length=512)
    end = time.monotonic() + seconds

    def note(caller: str, turn: int, text: str) -> None:
        outcomes["right" if json.loads(text) == f"{caller} {turn}" else f"wrong: {caller} {turn} got {text}"] += 1

    def in_thread(number: int) -> None:
        turn = 0
        while time.monotonic() < end:
            messages, options = _asked(f"thread {number}", turn)
            try:
                if turn % 5 == 1:
                    next(model.chat(messages, **options), None)  # dropped, half read
                else:
                    note(f"thread {number}", turn, model.chat(messages, **options).text())
            except Exception as error:
                outcomes[f"wrong: {type(error).__name__}: {error}"[:200]] += 1
            turn += 1

    async def in_task(number: int) -> None:
        turn = 0
        while time.monotonic() < end:
            messages, options = _asked(f"task {number}", turn)
            try:
                if turn % 5 == 1:
                    await asyncio.wait_for(model.achat(messages, **options).text(), 0.05)
                else:
                    note(f"task {number}", turn, await model.achat(messages, **options).text())
            except TimeoutError:
                outcomes["cancelled"] += 1
            except Exception as error:
                outcomes[f"wrong: {type(error).__name__}: {error}"[:200]] += 1
            turn += 1

    async def in_tasks() -> None:
        await asyncio.gather(*map(in_task, range(tasks)))

    callers = [threading.Thread(target=in_thread, args=(number,)) for number in range(threads)]
    for caller in callers:
        caller.start()
    asyncio.run(in_tasks())
    for caller in callers:
        caller.join()
    model.close()

    left = _left(before)
    wrong = sum(count for outcome, count in outcomes.items() if outcome.startswith("wrong"))
    print(f"{backend}: {outcomes['right']:,} right, {wrong} wrong, {outcomes['cancelled']} cancelled; left: {left}")
    for outcome, count in outcomes.most_common():
        if outcome.startswith("wrong"):
            print(f"  {count} {outcome}")
    return wrong + sum(left.values())


def _held() -> dict[str, int]:
    gc.collect()
    process = psutil.Process()
    return {
        "threads": threading.active_count(),
        "files": process.num_fds(),
        "processes": len(process.children(recursive=True)),
    }


def _left(before: dict[str, int]) -> dict[str, int]:
    """What there is beyond `before`, once what is ending has ended."""
    deadline = time.monotonic() + 20
    while True:
        left = {name: max(count - before[name], 0) for name, count in _held().items()}
        if not any(left.values()) or time.monotonic() > deadline:
            return left
        time.sleep(0.1)
