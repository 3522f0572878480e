# SPDX-License-Identifier: Apache-2.0
"""ChatInferenceBridge and InferenceBridgeEmbeddings on a llama-server: concurrent async calls start no threads.

Images are accepted in every form of LangChain.
"""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.messages import HumanMessage

from inference_bridge import Attachment, LoadConfig, Message, UnsupportedError
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
from langchain_inference_bridge import ChatInferenceBridge, InferenceBridgeEmbeddings

from ...parts.leaks import threads_since
from ...parts.models.tiny_gguf import write_embedding, write_llama
from ...parts.models.tiny_vision import BLUE, RED, write_projector
from ...parts.servers.managed import short_directory
from ...parts.servers.processes import llama_server

SLOTS = 4
ASKED = "What is the capital of France? Answer in one sentence."
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def chat(demo_model_path: Path) -> Iterator[ChatInferenceBridge]:
    with (
        llama_server(demo_model_path, slots=SLOTS) as address,
        ChatInferenceBridge(model=address, temperature=0, max_tokens=12) as chat,
    ):
        chat.load()
        yield chat


@pytest.mark.slow
async def test_many_at_once(chat: ChatInferenceBridge) -> None:
    before = threading.enumerate()
    tasks = [asyncio.create_task(chat.ainvoke(ASKED)) for _ in range(32)]
    begun: set[str] = set()
    while not all(task.done() for task in tasks):
        begun.update(threads_since(before))
        await asyncio.sleep(0.01)
    assert {message.text for message in await asyncio.gather(*tasks)} == {ANSWER}
    assert begun == set()


@pytest.mark.slow
def test_a_batch(chat: ChatInferenceBridge) -> None:
    before = threading.enumerate()
    assert [message.text for message in chat.batch([ASKED] * 12)] == [ANSWER] * 12
    assert threads_since(before) == []


async def test_cancelled_tasks_free_their_slots(chat: ChatInferenceBridge) -> None:
    async def consume(started: asyncio.Event) -> None:
        async for _ in chat.astream("Count from 1 to 1000.", max_tokens=-1):
            started.set()

    started = [asyncio.Event() for _ in range(SLOTS)]
    tasks = [asyncio.create_task(consume(event)) for event in started]
    await asyncio.gather(*(event.wait() for event in started))
    for task in tasks:
        task.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True))
    assert (await chat.ainvoke(ASKED)).text == ANSWER


async def test_embeddings_are_those_of_the_engine(tmp_path: Path) -> None:
    path = write_embedding(tmp_path / "bert.gguf")
    texts = ["the cat sat on the mat", "red and blue"]
    with LlamaCppBackend().load_model(str(path), LoadConfig(threads=1)) as model:
        expected = pytest.approx(np.array(model.embed(texts)), abs=1e-3)  # type: ignore[attr-defined]
    with (
        llama_server(path, embedding=True, length=64) as address,
        InferenceBridgeEmbeddings(model=address) as embeddings,
    ):
        assert np.array(embeddings.embed_documents(texts)) == expected
        assert np.array(await embeddings.aembed_documents(texts)) == expected


# ---------------------------------------------------------------- images

RED_TEXT = base64.b64encode(RED).decode()
BLOCKS: dict[str, dict[str, Any]] = {
    "LangChain's": {"type": "image", "base64": RED_TEXT, "mime_type": "image/png"},
    "with a data: URL": {"type": "image", "url": f"data:image/png;base64,{RED_TEXT}"},
    "OpenAI's": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{RED_TEXT}"}},
    "Anthropic's": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": RED_TEXT}},
}


@pytest.fixture(scope="module", params=["llama_server", "llama_cpp"])
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatInferenceBridge]:
    """On a server of our own, and in process."""
    path = tmp_path_factory.mktemp("model")
    model, projector = write_llama(path / "tiny.gguf"), write_projector(path / "mmproj-tiny.gguf")
    settings: dict[str, Any] = {"context_length": 512, "parallel_slots": 2, "threads": 1}
    with short_directory() as runtime, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        with ChatInferenceBridge(
            model=f"{request.param}:{model}", mmproj=projector, temperature=0, max_tokens=8, **settings
        ) as chat:
            yield chat


def question(block: dict[str, Any]) -> list[HumanMessage]:
    return [HumanMessage([{"type": "text", "text": "a"}, block, {"type": "text", "text": "b"}])]


async def test_an_image_is_seen_in_each_form(seeing: ChatInferenceBridge) -> None:
    model = seeing.load()
    red, blue = (
        model.chat([Message("user", ["a", Attachment("image/png", data=data), "b"])], max_tokens=8).text()
        for data in (RED, BLUE)
    )
    assert red != blue
    assert {name: seeing.invoke(question(block)).text for name, block in BLOCKS.items()} == dict.fromkeys(BLOCKS, red)
    assert (await seeing.ainvoke(question(BLOCKS["OpenAI's"]))).text == red
    assert "".join([chunk.text async for chunk in seeing.astream(question(BLOCKS["LangChain's"]))]) == red
    assert seeing.profile is not None
    assert seeing.profile["image_inputs"]


def test_an_image_for_a_text_only_model_is_refused(chat: ChatInferenceBridge) -> None:
    with pytest.raises(UnsupportedError, match="image/png attachments"):
        chat.invoke(question(BLOCKS["LangChain's"]))
