# SPDX-License-Identifier: Apache-2.0
"""The http backend on this package's own server satisfies the contract like the served model, with any engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import pytest

import inference_bridge as ib
from inference_bridge.interfaces import TokenModel
from inference_bridge.testing import Contract, ContractSuite, EmbeddingSuite
from inference_bridge.testing.callers import Async, Sync
from inference_bridge.testing.generation.batches import Batches
from inference_bridge.testing.generation.prompts import Prompts
from inference_bridge.testing.generation.results import Results
from inference_bridge.testing.generation.streams import Streams
from inference_bridge.testing.generation.tools import Reasoning, Schemas, Tools
from inference_bridge.testing.refusals.failures import Failures
from inference_bridge.testing.suite import InProcess

from ..parts.models.contract_models import DEMO_MODEL
from ..parts.models.tiny_gguf import write_embedding, write_llama
from .conftest import running


class Served(Contract):
    """A model that is served: `engine` loads it."""

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

    def test_every_token_arrives(self, model: ib.TextModel) -> None:
        assert model.capabilities == self.served.capabilities | {"stats"}
        assert model.options == self.served.options
        assert (model.info, model.model_type) == (self.served.info, self.served.model_type)
        assert (model.parallel, model.wrapped) == (self.served.parallel, self.served.wrapped)
        assert isinstance(model, TokenModel) == isinstance(self.served, TokenModel)


class ServedStreams(Streams):
    def test_dropping_ends_a_stream(self, model: ib.TextModel, caller: Sync) -> None:
        skip_if_the_loop_stands_still(caller)
        super().test_dropping_ends_a_stream(model, caller)


class ServedBatches(Batches):
    def test_a_batch_that_is_left_holds_nothing(self, model: ib.TextModel, caller: Sync) -> None:
        skip_if_the_loop_stands_still(caller)
        super().test_a_batch_that_is_left_holds_nothing(model, caller)


def skip_if_the_loop_stands_still(caller: Sync) -> None:
    if isinstance(caller, Async):
        # Nothing runs the loop between the calls of a test, and only the loop closes the connection.
        pytest.skip("the event loop is idle: it can't tell the server that the stream was dropped")


# How a client's process ends does not depend on the model that is served, so one suite tests it.


class TestLlamaCpp(Served, ServedStreams, ServedBatches, ContractSuite):
    """A random model."""

    prompt = "Once"
    question = "What?"
    length = 16

    @classmethod
    def engine(cls, directory: Path) -> ib.TextModel:
        path = write_llama(directory / "tiny.gguf", 2048)
        return ib.load_model(f"llama_cpp:{path}", threads=1, deterministic=True)


@pytest.mark.slow
class TestRealModel(Served, Schemas, Tools, Reasoning):
    """Answers of the real small model."""

    length = 8

    @classmethod
    def engine(cls, directory: Path) -> ib.TextModel:
        return ib.load_model(f"llama_cpp:{DEMO_MODEL}", context_length=320, deterministic=True)


class TestMlx(Served, ServedStreams, ServedBatches, InProcess):
    """A random model on MLX."""

    prompt = "The quick brown fox"
    endless = "Once upon a time"
    tolerance = 1e-3
    lasting_threads: ClassVar = ("inference-bridge-mlx",)

    @classmethod
    def engine(cls, directory: Path) -> ib.TextModel:
        pytest.importorskip("mlx_lm", reason="the extra `mlx` is not installed")
        from ..parts.models.mlx_tiny import write_tiny_mlx

        path = write_tiny_mlx(directory / "tiny", context_length=1024)
        return ib.load_model(str(path), backend="mlx")


class TestLlm(Served, Prompts, ServedStreams, Results, Failures):
    """A sync model of another llm plugin, in threads of the server. It runs a random model."""

    prompt = "Once"
    question = "What?"
    length = 6
    raw = False
    tolerance = 1.0
    reuses_prefixes = False

    @classmethod
    def engine(cls, directory: Path) -> ib.TextModel:
        pytest.importorskip("llm", reason="the extra `llm` is not installed")
        from ..adapters.llm.test_contract import plugin_on

        return plugin_on(str(write_llama(directory / "tiny.gguf", 2048)))


class TestLangChain(Served, ServedStreams, ServedBatches, InProcess):
    """A LangChain chat model, which runs a random model."""

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
