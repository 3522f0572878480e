# SPDX-License-Identifier: Apache-2.0
"""The llama_cpp backend keeps the contract, on the real small model."""

from __future__ import annotations

from typing import ClassVar

import pytest

from inference_bridge.testing import BackendSuite, ContractSuite, EmbeddingSuite

from ...parts.models.contract_models import DEMO_MODEL
from ...parts.models.tiny_gguf import write_embedding, write_llama
from ...parts.racing_suites import FILL_NAMES, InfillingBesideClose, RankingBesideClose


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


class TestRankingBesideClose(RankingBesideClose):
    __test__ = True

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.source = f"llama_cpp:{write_embedding(tmp_path_factory.mktemp('model') / 'rank.gguf', pooling=4)}"


class TestInfillingBesideClose(InfillingBesideClose):
    __test__ = True

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.source = f"llama_cpp:{write_llama(tmp_path_factory.mktemp('model') / 'fim.gguf', special=FILL_NAMES)}"
