# SPDX-License-Identifier: Apache-2.0
"""The engine: a Markov chain of bytes. It does not import inference_bridge."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator

ORDER = 5
"""Maximum number of earlier bytes that a prediction uses."""


class Chain:
    """Predicts the byte after a text, from the bytes that followed the same ending in the training text."""

    def __init__(self, text: bytes) -> None:
        if not text:
            raise ValueError("the training text is empty")
        self._after: dict[bytes, Counter[int]] = defaultdict(Counter)
        for end, byte in enumerate(text):
            for start in range(max(end - ORDER, 0), end + 1):
                self._after[text[start:end]][byte] += 1

    def continued(self, text: bytes, count: int, temperature: float, seed: int | None) -> Iterator[int]:
        """Yield `count` bytes after `text`.

        At temperature 0, each is the most frequent byte; otherwise it is sampled by frequency ** (1 / temperature).
        """
        chance = random.Random(seed)  # noqa: S311
        for _ in range(count):
            counts = self.counts(text)
            byte, most = counts.most_common(1)[0]
            if temperature:
                weights = [(count / most) ** (1 / temperature) for count in counts.values()]
                (byte,) = chance.choices(list(counts), weights)
            text = text[-ORDER:] + bytes([byte])
            yield byte

    def counts(self, text: bytes) -> Counter[int]:
        """Return the bytes that followed the longest known ending of `text`, and how often each did."""
        tail = text[-ORDER:]
        known = (tail[start:] for start in range(len(tail) + 1) if tail[start:] in self._after)
        return self._after[next(known)]
