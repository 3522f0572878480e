# SPDX-License-Identifier: Apache-2.0
"""Models that turn texts into vectors."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from ..errors import ContextLengthExceededError, ModelClosedError
from ..interfaces import EmbeddingModel, StatsModel
from ..model import TextModel
from .base import Contract
from .callers import Sync
from .lifecycle.racing import Racing


class Embeddings(Contract):
    """Tests of a model that declares "embeddings". A model that does not must not be an EmbeddingModel."""

    behaviours: ClassVar[tuple[int, ...]] = (6, 9)

    def test_one_vector_a_text(self, model: TextModel, caller: Sync) -> None:
        if not self._embeds(model):
            return
        vectors = caller.call(model, "embed", self._texts_to_embed())
        assert len(vectors) == len(self._texts_to_embed())
        for vector in vectors:
            assert len(vector) == model.info.hidden_size
            assert all(isinstance(value, float) and math.isfinite(value) for value in vector)
            assert any(vector)

    def test_a_text_s_vector_is_its_own(self, model: TextModel, caller: Sync) -> None:
        """A vector does not depend on the other texts or on their order."""
        if not self._embeds(model):
            return
        texts = self._texts_to_embed()
        alone = [caller.call(model, "embed", [text])[0] for text in texts]
        self._near_vectors(caller.call(model, "embed", texts), alone)
        self._near_vectors(caller.call(model, "embed", texts[::-1])[::-1], alone)
        assert max(abs(a - b) for a, b in zip(alone[0], alone[1], strict=True)) > 1e-4

    def test_nothing_and_what_is_no_text(self, model: TextModel, caller: Sync) -> None:
        if not self._embeds(model):
            return
        assert caller.call(model, "embed", []) == []
        for wrong in ("one string", None, 3, ["a", 3]):
            with pytest.raises(TypeError):
                caller.call(model, "embed", wrong)

    def test_many_threads(self, model: TextModel) -> None:
        if not self._embeds(model):
            return
        texts = self._texts_to_embed()
        embed = getattr(model, "embed")  # noqa: B009 - TextModel has none
        alone = embed(texts)
        with ThreadPoolExecutor(4) as pool:
            for vectors in pool.map(embed, [texts] * 4):
                self._near_vectors(vectors, alone)

    def test_a_text_over_the_context(self, model: TextModel, caller: Sync) -> None:
        if self._embeds(model) and model.info.context_length:
            with pytest.raises(ContextLengthExceededError) as raised:
                caller.call(model, "embed", ["a", "a " * 4 * model.info.context_length])
            assert raised.value.context_length == model.info.context_length

    def _embeds(self, model: TextModel) -> bool:
        declared = "embeddings" in model.capabilities
        assert isinstance(model, EmbeddingModel) == declared
        return declared

    def _texts_to_embed(self) -> list[str]:
        return [self.question, self.prompt, self.characters]

    def _near_vectors(self, found: Any, expected: Any) -> None:
        tolerance = max(self.tolerance, 1e-5)
        for one, other in zip(found, expected, strict=True):
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) <= tolerance


class EmbeddingSuite(Embeddings, Racing):
    """For a model that embeds and generates nothing. Set `source`, or define `load`."""

    def test_it_is_declared(self, model: TextModel) -> None:
        assert "embeddings" in model.capabilities
        assert isinstance(model, StatsModel) == ("stats" in model.capabilities)
        assert model.info.hidden_size > 0

    def test_after_close_calls_are_refused(self) -> None:
        model: Any = self.load()
        model.embed(["x"])
        model.close()
        model.close()
        with pytest.raises(ModelClosedError):
            model.embed(["x"])
        with pytest.raises(ModelClosedError):
            asyncio.run(model.aembed(["x"]))
