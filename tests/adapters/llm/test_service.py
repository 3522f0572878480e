# SPDX-License-Identifier: Apache-2.0
"""A service used through llm's OpenAI plugin, as a TextModel: a real server on this machine."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import inference_bridge as ib
from inference_bridge import Message, Tool, UnsupportedError
from llm_inference_bridge import LLMTextModel

from ...parts.servers.processes import llama_server

# The plugin makes a client for each prompt, and closes none.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)

QUESTION = [Message("user", "What is the capital of France? Answer in one sentence.")]
WEATHER = Tool("weather", "The weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
ANN = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def address(demo_model_path: Path) -> Iterator[str]:
    with llama_server(demo_model_path, slots=2, length=1024) as address:
        yield address


@pytest.fixture
def model(address: str, home: Path) -> Iterator[LLMTextModel]:
    (home / "llm").mkdir()
    (home / "llm" / "extra-openai-models.yaml").write_text(
        f"- model_id: service\n  model_name: any\n  api_base: {address}/v1\n"
        "  supports_tools: true\n  supports_schema: true\n"
    )
    with ib.load_model("llm:service") as loaded:
        assert isinstance(loaded, LLMTextModel)
        yield loaded
    gc.collect()


async def test_sync_and_async_usage_and_the_next_turn(model: LLMTextModel) -> None:
    assert {"tools", "json_schema"} <= model.capabilities
    stream = model.chat(QUESTION, temperature=0, max_tokens=20, stop=["Italy"])
    tokens = [*stream]
    assert "".join(token.text for token in tokens) == "The capital of France is Paris."
    assert len(tokens) > 5
    metrics = stream.metrics
    assert (stream.finish_reason, metrics.generated_tokens) == ("stop", 8)
    astream = model.achat(QUESTION, temperature=0, max_tokens=20)
    assert await astream.text() == stream.result().text
    assert astream.metrics.prompt_tokens == metrics.prompt_tokens > 30

    turns = [*QUESTION, Message("assistant", stream.result().text), Message("user", "And of Italy?")]
    second = model.chat(turns, temperature=0, max_tokens=3)
    assert second.result().finish_reason == "length"
    assert second.metrics.prompt_tokens > metrics.prompt_tokens + 8


async def test_a_batch_goes_side_by_side(model: LLMTextModel) -> None:
    prompts = ["Say one.", "Say two.", "Say three."]
    assert model.parallel == 8
    for results in (
        model.batch_generate(prompts, temperature=0, max_tokens=3),
        await model.abatch_generate(prompts, temperature=0, max_tokens=3),
    ):
        assert [len(result.tokens) for result in results] == [3, 3, 3]
        assert all(result.error is None for result in results)


async def test_a_schema_and_tools(model: LLMTextModel) -> None:
    text = model.chat([Message("user", "Invent a person.")], json_schema=ANN, temperature=0, max_tokens=60).text()
    assert set(json.loads(text)) == {"name", "age"}
    with pytest.raises(UnsupportedError, match="tool_choice"):
        model.chat(QUESTION, tools=[WEATHER], tool_choice="required")
    assert model.chat(QUESTION, tools=[WEATHER], temperature=0, max_tokens=2).text() == "The capital"


def test_leaving_early_frees_the_servers_slot(model: LLMTextModel) -> None:
    for _ in range(6):  # more than it has slots
        with model.chat([Message("user", "Count to one thousand.")], temperature=0) as stream:
            assert next(stream).text
    assert model.chat(QUESTION, temperature=0, max_tokens=2).text() == "The capital"


def test_what_the_service_refuses_is_typed(model: LLMTextModel) -> None:
    with pytest.raises(ib.GenerationError, match="context"):
        model.chat([Message("user", "word " * 2000)], max_tokens=2).text()
