# SPDX-License-Identifier: Apache-2.0
"""Declared capabilities work, and undeclared ones are refused (behaviour 9)."""

from __future__ import annotations

from typing import ClassVar, get_args

import pytest

from ...errors import UnsupportedError
from ...interfaces import BatchModel, EmbeddingModel, StatsModel
from ...model import TextModel
from ...types import Attachment, FinishReason, Message, ModelInfo
from ..base import Contract
from ..callers import Sync

_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360000000000200015e0af7250000000049454e44ae426082"
)


class Capabilities(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (9,)

    def test_what_it_is(self, model: TextModel) -> None:
        assert isinstance(model.info, ModelInfo)
        assert isinstance(model.model_type, str)
        assert model.model_type, "model_type must name the architecture"
        assert model.backend, "backend must name the backend, for messages"
        assert isinstance(model.capabilities, frozenset)
        assert all(isinstance(name, str) for name in model.capabilities)
        assert model.parallel >= 1
        assert not model.closed
        for name in ("vocab_size", "num_layers", "hidden_size", "quant_bits", "quant_group", "context_length"):
            assert getattr(model.info, name) >= 0

    def test_isinstance_agrees(self, model: TextModel) -> None:
        assert isinstance(model, BatchModel)
        assert isinstance(model, StatsModel) == ("stats" in model.capabilities)
        assert isinstance(model, EmbeddingModel) == ("embeddings" in model.capabilities)

    def test_ids_are_declared(self, model: TextModel, caller: Sync) -> None:
        ids = [token.id for token in caller.generate(model, self.prompt, **self.greedily(model))]
        assert any(id is not None for id in ids) == ("token_ids" in model.capabilities)

    def test_chat_is_declared(self, model: TextModel, caller: Sync) -> None:
        if self.chats(model):
            assert caller.chat(model, self.asked(), max_tokens=2).result().finish_reason in get_args(FinishReason)
            return
        with pytest.raises(UnsupportedError, match="chat"):
            caller.chat(model, self.asked()).result()

    @pytest.mark.parametrize("kind", ["images", "audios", "videos"])
    def test_attachments_are_declared(self, model: TextModel, caller: Sync, kind: str) -> None:
        if not self.chats(model):
            return  # another test checks that chat() is refused
        attachment = Attachment(f"{kind[:-1]}/png", data=_PIXEL)
        message = Message("user", ["What is this?", attachment])
        if kind in model.capabilities:
            caller.chat(model, [message]).close()
            return
        with pytest.raises(UnsupportedError) as refused:
            caller.chat(model, [message])
        self.check_refusal(model, refused.value, attachment.type)

    def test_labels(self, model: TextModel, caller: Sync) -> None:
        """A model with logits must score labels. Another model must either score them or refuse them."""
        labels = [" yes", " no", " perhaps not"]
        try:
            results = caller.call(model, "classify", [self.prompt, self.question], labels=labels)
        except UnsupportedError as error:
            assert "logits" not in model.capabilities
            self.check_refusal(model, error, "labels")
            return
        assert len(results) == 2
        for result in results:
            assert list(result.scores) == labels
            assert sum(result.scores.values()) == pytest.approx(1, abs=1e-6)
            assert all(0 <= score <= 1 for score in result.scores.values())
            assert result.scores[result.label] == max(result.scores.values())

    def test_labels_are_checked(self, model: TextModel, caller: Sync) -> None:
        with pytest.raises((TypeError, UnsupportedError)):
            caller.call(model, "classify", ["x"], labels=["a", 3])
        with pytest.raises((ValueError, UnsupportedError)):
            caller.call(model, "classify", ["x"], labels=[])
