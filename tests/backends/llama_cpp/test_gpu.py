# SPDX-License-Identifier: Apache-2.0
"""The llama_cpp backend keeps the contract with all layers on a GPU.

The model is a tiny random one, so that this also ends on a device in software (`make vulkan`).
"""

from __future__ import annotations

import pytest

from inference_bridge.backends.llama_cpp import devices
from inference_bridge.testing import EmbeddingSuite

from ...parts.models.contract_models import NONE, OnTinyModel
from ...parts.models.tiny_gguf import write_embedding, write_llama

# The same suite runs on the CPU in test_contract.py.
if not devices.gpus():
    pytest.skip("llama.cpp finds no GPU here", allow_module_level=True)


class TestModel(OnTinyModel):
    __test__ = True
    tolerance = 0.01  # a GPU may order its sums by what else is in the batch
    # Of such a model several tokens are nearly as likely: test_what_ran_before_changes_no_number compares the numbers.
    test_reuse_is_never_a_wrong_answer = NONE

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.source = f"llama_cpp:{write_llama(tmp_path_factory.mktemp('model') / 'llama.gguf')}"
        cls.load_options = {"context_length": 2048, "device": devices.gpus()[0].name}


class TestEmbeddings(EmbeddingSuite):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.source = f"llama_cpp:{write_embedding(tmp_path_factory.mktemp('model') / 'embedding.gguf')}"
