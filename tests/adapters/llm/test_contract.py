# SPDX-License-Identifier: Apache-2.0
"""A model that another's plugin gives llm keeps the contract, as `load_model("llm:…")`."""

from __future__ import annotations

import pytest

from inference_bridge import TextModel, load_model
from inference_bridge.testing import BackendSuite, ContractSuite
from llm_inference_bridge import LLMTextModel


@pytest.mark.slow
class TestModel(ContractSuite):
    source = "llm:SmolLM2"
    length = 6
    raw = False
    tolerance = 1.0
    reuses_prefixes = False

    @classmethod
    def load(cls) -> TextModel:
        model = load_model(cls.source)
        assert isinstance(model, LLMTextModel)
        model.llm_model.get_model().set_seed(1)  # type: ignore[union-attr] # the plugin samples, and takes no option
        return model


class TestBackend(BackendSuite):
    name = "llm"
    source = "SmolLM2"
    missing = "no-such-model"
    engine_modules = ("llm",)
