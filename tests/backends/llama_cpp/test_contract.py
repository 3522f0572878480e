# SPDX-License-Identifier: Apache-2.0
"""The llama_cpp backend keeps the contract, on the real small model."""

from __future__ import annotations

from typing import ClassVar

import pytest

from inference_bridge.testing import BackendSuite, ContractSuite, EmbeddingSuite
from inference_bridge.testing.lifecycle.racing import Racing

from ...parts.models.contract_models import DEMO_MODEL
from ...parts.models.tiny_gguf import write_embedding, write_llama


class TestModel(ContractSuite):
    source = f"llama_cpp:{DEMO_MODEL}"
    # Without it, results differ by rounding, by what earlier tests left in memory.
    load_options: ClassVar = {"context_length": 320, "deterministic": True}
    length = 8
    queues = True


class TestBackend(BackendSuite):
    name = "llama_cpp"
    source = DEMO_MODEL
    missing = "/no/such/model.gguf"
    engine_modules = ("llama_cpp", "llguidance", "numpy", "jinja2")


class TestEmbeddings(EmbeddingSuite):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.source = f"llama_cpp:{write_embedding(tmp_path_factory.mktemp('model') / 'embedding.gguf')}"


class TestRankingBesideClose(Racing):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.source = f"llama_cpp:{write_embedding(tmp_path_factory.mktemp('model') / 'rank.gguf', pooling=4)}"

    def test_it_races_with_ranking(self) -> None:
        model = self.load()
        assert {"rerank", "rerank of many documents"} <= self._operations(model).keys()
        assert {"arerank", "arerank of many documents"} <= self._aoperations(model).keys()


class TestInfillingBesideClose(Racing):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        marks = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
        cls.source = f"llama_cpp:{write_llama(tmp_path_factory.mktemp('model') / 'fim.gguf', special=marks)}"

    def test_it_races_with_infilling(self) -> None:
        model = self.load()
        assert {"infill", "infill of a long text", "infill, half read"} <= self._operations(model).keys()
        assert {"ainfill", "ainfill of a long text", "ainfill, half read"} <= self._aoperations(model).keys()
