# SPDX-License-Identifier: Apache-2.0
"""The smallest sync and async models that an author can write keep the contract. So does one without conversations."""

from __future__ import annotations

from collections.abc import Sequence

from inference_bridge import ModelInfo, Request, TextModel, UnsupportedError
from inference_bridge.authoring import strings
from inference_bridge.testing import ContractSuite

from ..parts.faulty.models import Sound
from ..parts.models.tiny import AsyncWords, Words


class Blocking(Words):
    backend = "words"
    info = ModelInfo("words")  # it states no context length, since it has none
    capabilities = frozenset({"chat"})


class Asynchronous(AsyncWords):
    backend = "words"
    info = ModelInfo("words")  # it states no context length, since it has none
    capabilities = frozenset({"chat", "images"})


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


class Raw(Sound):
    """A model without chats that declares little and has embeddings."""

    backend = "raw"
    info = ModelInfo("markov", hidden_size=1, context_length=600)
    capabilities = frozenset({"token_ids", "logprobs", "stats", "embeddings"})
    options = frozenset({"temperature", "top_k", "stop", "stop_tokens"})

    def _conversation(self, *_: object) -> Request:
        raise UnsupportedError("chat", self._name)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self._check_open()
        return [[float(len(self.check(text.encode())))] for text in strings(texts, "texts")]

    async def aembed(self, texts: Sequence[str]) -> list[list[float]]:
        return self.embed(texts)


class TestRaw(ContractSuite):
    prompt = "Humpty Dumpty sat on a wall"
    reuses_prefixes = False
    tolerance = 0.1  # so that no test expects repeatable results

    @classmethod
    def load(cls) -> TextModel:
        return Raw()
