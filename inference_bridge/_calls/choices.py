# SPDX-License-Identifier: Apache-2.0
"""Several answers to each prompt of a batch: option `n`."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ..options import GenerateConfig

_SEEDS = 2**64


class Choices:
    """Repeats the prompts of a batch, and gives the config of each answer.

    Args:
        config: The batch's options.
    """

    def __init__(self, config: GenerateConfig) -> None:
        self._config = replace(config, n=None)
        self._count = config.n or 1
        self._made = itertools.count()

    def config(self) -> GenerateConfig:
        """Return the config of the next answer. Call it once for each of the repeated prompts, in their order."""
        return of_choice(self._config, next(self._made) % self._count)

    def repeated(self, prompts: Any) -> Any:
        """Return an iterable with n copies of each prompt. It is asynchronous if `prompts` is."""
        if self._count == 1:
            return prompts
        return self._arepeated(prompts) if isinstance(prompts, AsyncIterable) else self._repeated(prompts)

    def _repeated(self, prompts: Iterable[Any]) -> Iterator[Any]:
        for prompt in prompts:
            yield from itertools.repeat(prompt, self._count)

    async def _arepeated(self, prompts: AsyncIterable[Any]) -> AsyncIterator[Any]:
        async for prompt in prompts:
            for _ in range(self._count):
                yield prompt


def of_choice(config: GenerateConfig, place: int) -> GenerateConfig:
    """Return the config of one of several answers. Each answer has its own seed, computed from the seed of the call.

    Args:
        config: The options of the call.
        place: The index of the answer.
    """
    return config if config.seed is None or not place else replace(config, seed=(config.seed + place) % _SEEDS)
