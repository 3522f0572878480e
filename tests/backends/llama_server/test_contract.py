# SPDX-License-Identifier: Apache-2.0
"""The llama_server backend keeps the contract, in the real server."""

from __future__ import annotations

from typing import ClassVar

import pytest

from inference_bridge.testing import BackendSuite, EmbeddingSuite

from ...parts.models.contract_models import DEMO_MODEL, OnTinyServer
from ...parts.models.tiny_gguf import write_embedding, write_llama
from ...parts.racing_suites import FILL_NAMES, InfillingBesideClose, RankingBesideClose

pytestmark = pytest.mark.usefixtures("short_runtime_directory")


class TestModel(OnTinyServer):
    """On a random model."""

    __test__ = True
    load_options: ClassVar = {
        "context_length": 1280,
        "parallel_slots": 4,
        "threads": 1,
        "extra": ["--flash-attn", "off", "--no-repack"],
    }

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        path = write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", 2048)
        cls.source = f"llama_server:{path}"


class TestBackend(BackendSuite):
    name = "llama_server"
    source = DEMO_MODEL
    missing = "/no/such/model.gguf"
    engine_modules = ("httpx2", "psutil", "xllamacpp")


class TestEmbeddings(EmbeddingSuite):
    tolerance = 1e-3
    load_options: ClassVar = {"threads": 1}

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.source = f"llama_server:{write_embedding(tmp_path_factory.mktemp('model') / 'embedding.gguf')}"


class TestRankingBesideClose(RankingBesideClose):
    __test__ = True
    load_options: ClassVar = {"threads": 1}

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        path = write_embedding(tmp_path_factory.mktemp("model") / "rank.gguf", pooling=4)
        cls.source = f"llama_server:{path}"


class TestInfillingBesideClose(InfillingBesideClose):
    __test__ = True
    load_options: ClassVar = {"context_length": 512, "threads": 1}

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        path = write_llama(tmp_path_factory.mktemp("model") / "fim.gguf", special=FILL_NAMES)
        cls.source = f"llama_server:{path}"
