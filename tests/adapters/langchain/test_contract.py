# SPDX-License-Identifier: Apache-2.0
"""A LangChain chat model behind the contract keeps it: one that runs a real engine."""

from __future__ import annotations

from inference_bridge import TextModel, load_model
from langchain_inference_bridge import ChatInferenceBridge, LangChainTextModel

from ...parts.models.contract_models import OnTinyModel


class Owned(LangChainTextModel):
    """A chat model on a TextModel, which is closed with it."""

    def __init__(self, inner: TextModel) -> None:
        # Greedy where a test sets no temperature: ChatInferenceBridge would sample.
        super().__init__(ChatInferenceBridge(text_model=inner, temperature=0.0), parallel=inner.parallel)
        self._inner = inner

    def close(self) -> None:
        self._inner.close()


class TestModel(OnTinyModel):
    __test__ = True
    raw = False

    @classmethod
    def load(cls) -> TextModel:
        return Owned(load_model(f"llama_cpp:{cls.source}", threads=1))
