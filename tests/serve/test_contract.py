# SPDX-License-Identifier: Apache-2.0
"""The http backend on this package's own server keeps the contract as the served model does, whatever its engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import pytest

import inference_bridge as ib
from inference_bridge.testing import ContractSuite, EmbeddingSuite
from inference_bridge.testing.callers import Async, Sync
from inference_bridge.token_model import TokenModel

from ..parts.contract_models import DEMO_MODEL
from ..parts.tiny_gguf import write_embedding, write_llama
from .conftest import running


class Served(ContractSuite):
    """The suite on a model that is served: `engine` loads it."""

    __test__ = False

    @classmethod
    def engine(cls, directory: Path) -> ib.TextModel:
        """Load the model."""
        raise NotImplementedError

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        with ExitStack() as stack:
            engine = stack.enter_context(cls.engine(tmp_path_factory.mktemp("model")))
            cls.source = stack.enter_context(running({"served": engine}))
            cls.served = engine
            yield

    served: ClassVar[ib.TextModel]

    def test_a_batch_that_is_left_holds_nothing(self, model: ib.TextModel, caller: Sync) -> None:
        if isinstance(caller, Async):
            pytest.skip("an event loop that stands still closes no connection, so the server can't know of it")
        super().test_a_batch_that_is_left_holds_nothing(model, caller)

    def test_nothing_is_lost(self, model: ib.TextModel) -> None:
        assert model.capabilities == self.served.capabilities | {"stats"}
        assert model.options == self.served.options
        assert (model.info, model.model_type) == (self.served.info, self.served.model_type)
        assert (model.parallel, model.wrapped) == (self.served.parallel, self.served.wrapped)
        assert isinstance(model, TokenModel) == isinstance(self.served, TokenModel)


class TestLlamaCpp(Served):
    """A random model."""

    __test__ = True
    prompt = "Once"
    question = "What?"
    length = 16

    @classmethod
    def engine(cls, directory: Path) -> ib.TextModel:
        path = write_llama(directory / "tiny.gguf", 2048)
        return ib.load_model(f"llama_cpp:{path}", threads=1, deterministic=True)


@pytest.mark.slow
class TestRealModel(Served):
    """The small real model."""

    __test__ = True
    length = 8

    @classmethod
    def engine(cls, directory: Path) -> ib.TextModel:
        return ib.load_model(f"llama_cpp:{DEMO_MODEL}", context_length=320, deterministic=True)


class TestMlx(Served):
    """A random model on MLX."""

    __test__ = True
    prompt = "The quick brown fox"
    endless = "Once upon a time"
    tolerance = 1e-3
    lasting_threads: ClassVar = ("inference-bridge-mlx",)

    @classmethod
    def engine(cls, directory: Path) -> ib.TextModel:
        pytest.importorskip("mlx_lm", reason="the extra `mlx` is not installed")
        from ..parts.mlx_tiny import write_tiny_mlx

        path = write_tiny_mlx(directory / "tiny", context_length=1024)
        return ib.load_model(str(path), backend="mlx")


@pytest.mark.slow
class TestLlm(Served):
    """A model of another llm plugin."""

    __test__ = True
    length = 6
    raw = False
    tolerance = 1.0
    reuses_prefixes = False

    @classmethod
    def engine(cls, directory: Path) -> ib.TextModel:
        pytest.importorskip("llm", reason="the extra `llm` is not installed")
        from llm_inference_bridge import LLMTextModel

        model = ib.load_model("llm:SmolLM2")
        assert isinstance(model, LLMTextModel)
        model.llm_model.get_model().set_seed(1)  # type: ignore[union-attr] # the plugin samples, and takes no option
        return model


class TestLangChain(Served):
    """A LangChain chat model, which runs a random model."""

    __test__ = True
    prompt = "Once"
    question = "What?"
    length = 16
    raw = False

    @classmethod
    def engine(cls, directory: Path) -> ib.TextModel:
        pytest.importorskip("langchain_core", reason="the extra `langchain` is not installed")
        from ..adapters.langchain.test_contract import Owned

        path = write_llama(directory / "tiny.gguf", 2048)
        return Owned(ib.load_model(f"llama_cpp:{path}", threads=1, deterministic=True))


class TestEmbeddings(EmbeddingSuite):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        path = write_embedding(tmp_path_factory.mktemp("model") / "embedding.gguf")
        with ib.load_model(f"llama_cpp:{path}") as engine, running({"served": engine}) as cls.source:
            yield
