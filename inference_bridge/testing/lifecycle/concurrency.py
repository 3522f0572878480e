# SPDX-License-Identifier: Apache-2.0
"""Concurrent operations in several threads and event loops (behaviour 6)."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from ...model import TextModel
from ...types import GenerateResult
from ..base import Contract
from ..callers import Sync


class Concurrency(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (6,)

    queues: ClassVar[bool] = False
    """Whether the model runs at most `parallel` operations at once, and the others wait in order. False: the model runs
    any number of operations at once, such as each in a separate thread."""

    def test_many_at_once_get_what_each_gets_alone(self, model: TextModel, caller: Sync) -> None:
        prompts = self.prompts(2 * self.slots(model) + 1)
        alone = [self.alone(model, prompt) for prompt in prompts]
        together = caller.together(
            [lambda own, p=prompt: own.generate(model, p, **self.greedily(model)) for prompt in prompts]  # type: ignore[misc]
        )
        self._same(together, alone)

    def test_many_event_loops_at_once(self, model: TextModel) -> None:
        prompts = self.prompts(4)
        alone = [self.alone(model, prompt) for prompt in prompts]

        async def several() -> list[GenerateResult]:
            streams = [model.agenerate(prompt, **self.greedily(model)) for prompt in prompts]
            return await asyncio.gather(*(stream.result() for stream in streams))

        with ThreadPoolExecutor(3) as pool:
            loops = [pool.submit(asyncio.run, several()) for _ in range(3)]
        for loop in loops:
            self._same(loop.result(), alone)

    def test_one_event_loop_after_another(self, model: TextModel) -> None:
        async def one() -> GenerateResult:
            return await model.agenerate(self.prompt, **self.greedily(model)).result()

        self._same([asyncio.run(one()), asyncio.run(one())], [self.alone(model)] * 2)

    def test_blocking_calls_inside_an_event_loop(self, model: TextModel) -> None:
        """In a notebook, all code runs inside an event loop."""

        async def main() -> GenerateResult:
            return model.generate(self.prompt, **self.greedily(model)).result()

        self._same([asyncio.run(main())], [self.alone(model)])

    def test_sync_and_async_at_once(self, model: TextModel) -> None:
        prompts = self.prompts(2)
        alone = [self.alone(model, prompt) for prompt in prompts]

        async def main() -> list[Any]:
            loop = asyncio.get_running_loop()
            options = self.greedily(model)
            blocking = loop.run_in_executor(None, lambda: model.generate(prompts[0], **options).result())
            stream = model.agenerate(prompts[1], **options)
            return list(await asyncio.gather(blocking, stream.result()))

        self._same(asyncio.run(main()), alone)

    def test_what_waits_is_served_in_order(self, model: TextModel) -> None:
        async def main() -> list[int]:
            order: list[int] = []
            holders = [model.agenerate(self.endless, max_tokens=-1) for _ in range(model.parallel)]
            for holder in holders:
                await anext(holder)

            async def wait(number: int) -> None:
                await model.agenerate(self.prompt, max_tokens=2).text()
                order.append(number)

            waiting = [asyncio.create_task(wait(number)) for number in range(4)]
            for _ in range(10):
                await asyncio.sleep(0)
            for holder in holders[:1] if self.queues else holders:
                await holder.aclose()  # the waiting operations run in the free slot, one after another
            await asyncio.gather(*waiting)
            for holder in holders:
                await holder.aclose()
            return order

        order = self.within(lambda: asyncio.run(main()), "operations that wait for a slot")
        assert sorted(order) == list(range(4))
        if self.queues:
            assert order == list(range(4))

    def _same(self, results: Any, alone: list[GenerateResult]) -> None:
        assert len(results) == len(alone)
        for result, expected in zip(results, alone, strict=True):
            assert isinstance(result, GenerateResult), repr(result)
            if self.repeats:
                assert (result.text, result.finish_reason) == (expected.text, expected.finish_reason)
            else:
                assert result.tokens
