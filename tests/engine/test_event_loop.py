# SPDX-License-Identifier: Apache-2.0
"""Long computations run in other threads and do not block the event loop."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from inference_bridge import Message, Noul, Tool, UnsupportedError
from inference_bridge._calls.arguments import FEW_MESSAGES, SHORT_PART, are_read_at_once
from inference_bridge.errors import ContextLengthExceededError, GenerationTimeoutError
from inference_bridge.types import Attachment

from ..parts.models.scripted_engine import ByteTokenizer, ScriptedEngine, ScriptedModel


class Spied(dict[str, Any]):
    """A mapping that notes in which threads it is read."""

    def __init__(self, values: dict[str, Any], threads: set[str]) -> None:
        super().__init__(values)
        self.threads = threads

    def _note(self, key: object) -> None:
        if key == "role":
            self.threads.add(threading.current_thread().name)

    def get(self, key: Any, default: Any = None) -> Any:
        self._note(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self._note(key)
        return super().__getitem__(key)


class SpyingTokenizer(ByteTokenizer):
    """Notes in which threads it tokenizes."""

    def __init__(self) -> None:
        self.threads: set[str] = set()

    def encode(self, text: str, *, special: bool, check: Callable[[], None] = lambda: None) -> list[int]:
        if text:
            self.threads.add(threading.current_thread().name)
        return super().encode(text, special=special, check=check)

    def encode_rendered(self, text: str, mark: str = "", check: Callable[[], None] = lambda: None) -> list[int]:
        self.threads.add(threading.current_thread().name)
        return super().encode_rendered(text, mark, check)


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(ScriptedEngine()) as model:
        model._tokenizer = SpyingTokenizer()
        yield model


def tokenizing(model: ScriptedModel) -> set[str]:
    tokenizer = model._tokenizer
    assert isinstance(tokenizer, SpyingTokenizer)
    return tokenizer.threads


async def test_a_long_conversation_is_read_elsewhere(model: ScriptedModel) -> None:
    threads: set[str] = set()
    here = threading.current_thread().name
    long = [Spied({"role": "user", "content": "a"}, threads) for _ in range(FEW_MESSAGES + 1)]
    await model.achat(long, max_tokens=1).text()
    for result in await model.achat_batch([long, long], max_tokens=1):
        assert result.error is None
    assert threads
    assert here not in threads
    assert here not in tokenizing(model)


async def test_a_long_conversation_that_is_wrong_fails_alone(model: ScriptedModel) -> None:
    wrong: list[Any] = [*[{"role": "user", "content": "a"}] * FEW_MESSAGES, {"role": 7}]
    bad, good = await model.achat_batch([wrong, [Message("user", "hello")]], max_tokens=1)
    assert isinstance(bad.error, TypeError | ValueError)
    assert good.error is None
    with pytest.raises((TypeError, ValueError)):
        await model.achat(wrong).text()


async def test_a_batch_is_closed_while_a_conversation_is_read(model: ScriptedModel) -> None:
    reads, goes_on = threading.Event(), threading.Event()

    class Slow(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            reads.set()
            goes_on.wait(20)
            return super().__getitem__(key)

        def get(self, key: str, default: Any = None) -> Any:
            if key == "role":
                reads.set()
                goes_on.wait(20)
            return super().get(key, default)

    long = [Slow(role="user", content="a")] * (FEW_MESSAGES + 1)
    task = asyncio.create_task(model.achat_batch([long], max_tokens=1))
    assert await asyncio.to_thread(reads.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    goes_on.set()
    assert await model.agenerate("ab", max_tokens=1).text() == "a"


async def test_a_long_prompt_is_tokenized_elsewhere(model: ScriptedModel) -> None:
    here = threading.current_thread().name
    await model.agenerate("a" * 5000, max_tokens=1).text()
    assert await model.acount_tokens("a" * 5000) == 5000
    await model.aclassify(["a" * 5000])
    with pytest.raises(ContextLengthExceededError):
        await model.agenerate("a" * 1_000_000, max_tokens=1).text()
    assert tokenizing(model)
    assert here not in tokenizing(model)


async def test_a_state_to_decide_on_is_read_elsewhere(model: ScriptedModel) -> None:
    threads: set[str] = set()
    state = {"turns": [Spied({"role": "user", "content": "a"}, threads) for _ in range(20)]}
    here = threading.current_thread().name
    await model.adecide(state, {"x": Noul("?")})
    assert here not in tokenizing(model)
    with pytest.raises(GenerationTimeoutError):
        await model.adecide(state, {"x": Noul("?")}, timeout=1e-9)


async def test_tools_are_checked_elsewhere(model: ScriptedModel) -> None:
    threads: set[str] = set()

    class Schema(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            threads.add(threading.current_thread().name)
            return super().get(key, default)

    tool = Tool("f", "", Schema(type="object", properties={}))
    threads.clear()
    await model.achat([Message("user", "a")], tools=[tool], max_tokens=1).text()
    assert threads
    assert threading.current_thread().name not in threads


def test_a_long_part_of_a_mapping_is_not_read_at_once() -> None:
    long = "A" * (SHORT_PART + 4)
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{long}"}}
    assert not are_read_at_once([{"role": "user", "content": [{"type": "text", "text": "a"}, image]}])
    assert are_read_at_once([{"role": "user", "content": [{"type": "text", "text": "a"}]}])
    assert are_read_at_once([Message("user", long), {"role": "user", "content": long}])


async def test_an_attachment_that_is_not_base64_fails_where_the_stream_is_awaited(model: ScriptedModel) -> None:
    part = {"type": "attachment", "mime_type": "image/png", "data": "!" * (SHORT_PART + 4)}
    stream = model.achat([{"role": "user", "content": [part]}])
    with pytest.raises(ValueError, match="base64"):
        await stream.text()
    part["data"] = "A" * (SHORT_PART + 4)
    with pytest.raises(UnsupportedError):
        await model.achat([{"role": "user", "content": [part]}]).text()


@pytest.mark.parametrize("size", [786_431, 786_432, 786_433, 1_600_000])
def test_base64_of_several_pieces(size: int) -> None:
    data = bytes(index % 251 for index in range(size))
    text = base64.b64encode(data).decode()
    assert Attachment.from_dict({"type": "attachment", "mime_type": "image/png", "data": text}).data == data
    padded = base64.b64encode(data[:786_431]).decode() + "AAAA"  # the padding is within
    with pytest.raises(ValueError, match="base64"):
        Attachment.from_dict({"type": "attachment", "mime_type": "image/png", "data": padded})
