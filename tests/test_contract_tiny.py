# SPDX-License-Identifier: Apache-2.0
"""The least that an author can write, of either colour, keeps the contract."""

from __future__ import annotations

from inference_bridge import ModelInfo, TextModel
from inference_bridge.testing import ContractSuite

from .tiny import AsyncWords, Words


class Blocking(Words):
    backend = "words"
    info = ModelInfo("words")  # it states no context length, since it has none
    capabilities = frozenset({"chat"})


class Asynchronous(AsyncWords):
    backend = "words"
    info = ModelInfo("words")  # it states no context length, since it has none
    capabilities = frozenset({"chat"})


class TestBlocking(ContractSuite):
    prompt = "a word is a token here, and the model says what it was told, word by word, to the end"
    endless = "word " * 2000
    reuses_prefixes = False

    @classmethod
    def load(cls) -> TextModel:
        return Blocking()


class TestAsynchronous(TestBlocking):
    @classmethod
    def load(cls) -> TextModel:
        return Asynchronous()
