# SPDX-License-Identifier: Apache-2.0
"""The mlx backend keeps the contract: on a random model, at a thousand tokens a second."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar

from inference_bridge import TextModel, load_model
from inference_bridge.testing import BackendSuite, ContractSuite, EmbeddingSuite

from ...parts.models.mlx_embedding import write_embedding_model
from ...parts.models.mlx_tiny import write_tiny_mlx
from ...parts.racing_suites import FILL_NAMES, InfillingBesideClose

_HOME = tempfile.TemporaryDirectory()  # removed at the end; a suite needs it before any fixture, and in other processes
TINY = str(write_tiny_mlx(Path(_HOME.name) / "tiny", context_length=1024))

INFILLING = str(write_tiny_mlx(Path(_HOME.name) / "fim", context_length=512, special=FILL_NAMES))
EMBEDDING = str(write_embedding_model(Path(_HOME.name) / "embedding", architecture="bert"))


class TestModel(ContractSuite):
    prompt = "The quick brown fox"
    endless = "Once upon a time"
    tolerance = 1e-3
    queues = True
    lasting_threads: ClassVar = ("inference-bridge-mlx",)

    @classmethod
    def load(cls) -> TextModel:
        return load_model(TINY, backend="mlx")


class TestBackend(BackendSuite):
    name = "mlx"
    source = TINY
    missing = "/no/such/model"
    engine_modules: ClassVar = ("mlx", "mlx_lm", "transformers", "llguidance", "numpy", "jinja2")


class TestEmbeddings(EmbeddingSuite):
    lasting_threads: ClassVar = ("inference-bridge-mlx",)

    @classmethod
    def load(cls) -> TextModel:
        return load_model(EMBEDDING, backend="mlx")


class TestInfillingBesideClose(InfillingBesideClose):
    __test__ = True

    @classmethod
    def load(cls) -> TextModel:
        return load_model(INFILLING, backend="mlx")
