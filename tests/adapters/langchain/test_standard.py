# SPDX-License-Identifier: Apache-2.0
"""LangChain's own standard tests of chat models, on real models: in this process, on a llama-server, on MLX."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_inference_bridge import ChatInferenceBridge

from ...parts.models.mlx_tiny import write_tiny_mlx

MODEL = "llama_cpp:SmolLM2-135M-Instruct.Q4_1"
SERVED = "llama_server:SmolLM2-135M-Instruct.Q4_1"

pytestmark = [
    # LangChain's standard tests call functions that LangChain has deprecated, or marked as beta.
    pytest.mark.filterwarnings("ignore:The method `BaseChatModel.dict` was deprecated"),
    pytest.mark.filterwarnings("ignore:The function `tool_example_to_messages` is in beta"),
    pytest.mark.filterwarnings("ignore:The method `BaseChatModel._a?chat_model_stream_v3` is in beta"),
]


PARAMS: dict[str, Any] = {
    "model": MODEL,
    "context_length": 2048,
    "parallel_slots": 4,
    "threads": 1,
    "temperature": 0,
    "presence_penalty": 0.3,
    "max_tokens": 160,
}


class TestUnit(ChatModelUnitTests):
    chat_model_class = ChatInferenceBridge
    chat_model_params = {"model": MODEL}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a serialised model names in place of its key is set; and its class is listed in LangChain.

        "all" means there all the packages of LangChain's own list, which others can't get onto.
        """
        monkeypatch.setenv("INFERENCE_BRIDGE_API_KEY", "test")
        load = importlib.import_module("langchain_core.load.load")  # the module, not the function
        path = tuple(ChatInferenceBridge.lc_id())
        monkeypatch.setitem(load.ALL_SERIALIZABLE_MAPPINGS, path, path)
        monkeypatch.setattr(load, "_default_class_paths_cache", {})


class Standard(ChatModelIntegrationTests):
    """The tests of one backend, on one model that all of them share."""

    chat_model_class = ChatInferenceBridge
    chat_model_params = PARAMS

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _loaded(cls, demo_model_path: Path) -> Iterator[None]:
        with ChatInferenceBridge(**cls.chat_model_params) as chat:
            chat.load()
            yield
            gc.collect()

    structured_output_kwargs = {"repeat_penalty": 1.1}  # noqa: RUF012 - small models go round in circles
    supports_json_mode = True
    supports_anthropic_inputs = True
    model_override_value = MODEL.removeprefix("llama_cpp:")

    @property
    def supported_usage_metadata_details(self) -> Any:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    # Asked "What is the weather in San Francisco, CA?", and shown get_weather by the engine's generic prompt, the model
    # says (greedily; with presence_penalty 0.3 as here, and without in other words): "The weather in San Francisco,
    # California, is described by the following JSON object: { "type": "function", "parameters": { "location": …".
    # It was never taught to call tools. With tool_choice="get_weather" the same loop runs: test_langchain_chat has it.
    @pytest.mark.xfail(
        reason="a model of 135M parameters does not call a tool unasked", raises=AssertionError, strict=True
    )
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        chat = ChatInferenceBridge(**self.chat_model_params)
        question = "A list of twenty animals, each with a colour: " + "the cat is black, " * 20
        chat.invoke(question, max_tokens=4)
        if not stream:
            answer = chat.invoke(question, max_tokens=4)
        else:
            first, *others = chat.stream(question, max_tokens=4)
            answer = first.__add__(others)
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["input_token_details"]["cache_read"] > 100
        return answer


@pytest.mark.slow
class TestIntegration(Standard):
    pass


@pytest.mark.slow
class TestOnServer(Standard):
    # With the 0.3 of the others, a string of the compact JSON that this server writes repeats itself to the limit.
    chat_model_params = PARAMS | {"model": SERVED, "presence_penalty": 0.4}
    model_override_value = SERVED


class TestOnMlx(Standard):
    """A random model's strings have no end, so it is asked for no calls and no JSON."""

    chat_model_params: dict[str, Any] = {}  # noqa: RUF012
    has_tool_calling = False
    has_tool_choice = False
    has_structured_output = False
    supports_json_mode = False

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _loaded(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        path = write_tiny_mlx(tmp_path_factory.mktemp("models") / "tiny", context_length=1024)
        cls.chat_model_params |= {"model": f"mlx:{path}", "context_length": 1024, "max_tokens": 24, "temperature": 0.0}
        cls.model_override_value = f"mlx:{path}"
        with ChatInferenceBridge(**cls.chat_model_params) as chat:
            chat.load()
            yield
            gc.collect()
