# SPDX-License-Identifier: Apache-2.0
"""The http backend satisfies the contract on real servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from inference_bridge.testing import BackendSuite, ContractSuite, EmbeddingSuite
from inference_bridge.testing.generation.tools import Schemas, Tools

from ...parts.models.contract_models import DEMO_MODEL, NONE, OnTinyServer
from ...parts.models.tiny_gguf import write_embedding, write_llama
from ...parts.racing_suites import FILL_NAMES, InfillingBesideClose, RankingBesideClose
from ...parts.servers.processes import KEY, llama_cpp_server, llama_server, mlx_server


class TestLlamaServer(OnTinyServer):
    """On a random model."""

    __test__ = True
    load_options: ClassVar = {"api_key": KEY}

    # Random weights choose white space without end, which this server's grammars allow. TestAnswers has a real model.
    test_and_so_it_is_in_a_conversation = NONE

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        path = write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", 2048)
        with llama_server(path, key=KEY, length=1280, exact=True) as cls.source:
            yield


class TestAnswers(Schemas, Tools):
    """Answers of the small real model."""

    length = 8
    tolerance = 1.0
    load_options: ClassVar = {"api_key": KEY}

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def server(cls) -> Iterator[None]:
        with llama_server(DEMO_MODEL, key=KEY, length=768) as cls.source:
            yield


class TestLlamaServerBackend(BackendSuite):
    name = "http"
    missing = "http://127.0.0.1:9"  # the port of "discard", where nothing listens
    engine_modules = ("httpx2", "httpcore2", "anyio")

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        path = write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", 512)
        with llama_server(path, length=256) as cls.source:
            yield


class TestEmbeddingsOfALlamaServer(EmbeddingSuite):
    tolerance = 1e-3

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        path = write_embedding(tmp_path_factory.mktemp("model") / "embedding.gguf")
        with llama_server(path, embedding=True, length=64) as cls.source:
            yield


class TestRankingBesideClose(RankingBesideClose):
    """On llama-server."""

    __test__ = True

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        path = write_embedding(tmp_path_factory.mktemp("model") / "rank.gguf", pooling=4)
        with llama_server(path, ranks=True, length=64) as cls.source:
            yield


class TestInfillingBesideClose(InfillingBesideClose):
    """On llama-server."""

    __test__ = True

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        path = write_llama(tmp_path_factory.mktemp("model") / "fim.gguf", special=FILL_NAMES)
        with llama_server(path, length=512) as cls.source:
            yield


class OnAnotherServer(ContractSuite):
    """How a client's process ends does not depend on the server: TestLlamaServer alone tests it."""

    __test__ = False
    test_nothing_is_left = NONE
    test_a_program_that_never_closes_ends_at_once = NONE
    test_a_forked_child_is_refused_and_the_parent_goes_on = NONE


class TestLlamaCppServer(OnAnotherServer):
    """llama_cpp.server, on a random model: one request at a time."""

    __test__ = True
    prompt = "Once"
    question = "What?"
    length = 16
    tolerance = 1.0
    penalties: ClassVar = {"repeat_penalty": 5.0, "presence_penalty": 2.0, "frequency_penalty": 2.0}

    test_the_whole_prompt_is_counted = NONE  # it reports no usage in streams
    test_zero_switches_off = NONE  # unset options have the server's defaults, which are not "off"
    racing_prompt = 400  # it drops the connection of a stream whose prompt is too long
    load_options: ClassVar = {"api_key": KEY}

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        path = write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", 2048)
        with llama_cpp_server(path, key=KEY) as cls.source:
            yield


@pytest.mark.slow
class TestMlxServer(OnAnotherServer):
    """mlx_lm.server: it reads calls, and forces none."""

    __test__ = True
    test_a_forced_call = NONE
    test_concurrent_callers_get_their_own_calls = NONE
    test_what_only_begins_a_stop_string_shows = NONE  # it counts tokens, which this server lumps together

    prompt = "The quick brown fox"
    endless = "Once upon a time"
    tolerance = 1.0
    racing_prompt = 400  # it evaluates a prompt to its end, also when its client has left

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        from ...parts.models.mlx_tiny import write_tiny_mlx

        path = write_tiny_mlx(tmp_path_factory.mktemp("model") / "tiny", context_length=512)
        with mlx_server(path) as cls.source:
            yield
