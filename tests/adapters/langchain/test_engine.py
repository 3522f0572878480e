# SPDX-License-Identifier: Apache-2.0
"""ChatInferenceBridge on a real model: concurrency, cancellation, and constrained decoding."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from inference_bridge import ContextLengthExceededError, GenerationError, Message, TextModel
from inference_bridge._concurrency.background import MAX_THREADS
from langchain_inference_bridge import ChatInferenceBridge, LangChainTextModel

from ...parts.models.tiny import auntil

SLOTS = 8
COUNTRIES = ["France", "Italy", "Japan", "Egypt", "Peru", "Spain", "Kenya", "India"]


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Iterator[TextModel]:
    with ChatInferenceBridge(
        model=f"llama_cpp:{demo_model_path}", context_length=512, parallel_slots=SLOTS, threads=1
    ) as chat:
        yield chat.load()
        gc.collect()


@pytest.fixture(scope="module")
def chat(model: TextModel) -> ChatInferenceBridge:
    return ChatInferenceBridge(text_model=model, temperature=0, max_tokens=12)


def question(number: int) -> str:
    return f"What is the capital of {COUNTRIES[number % len(COUNTRIES)]}? Answer in one sentence."


@pytest.fixture(scope="module")
def answers(chat: ChatInferenceBridge) -> list[str]:
    """The answer to each question when no other operation runs."""
    said = [str(chat.invoke(question(number)).text) for number in range(len(COUNTRIES))]
    assert said[0] == "The capital of France is Paris."
    return said


class Threads:
    """The most threads that there were while a block ran, beyond those before it."""

    def __enter__(self) -> Threads:
        self.before = self.most = threading.active_count()
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.002):
            self.most = max(self.most, threading.active_count() - 1)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()

    @property
    def more(self) -> int:
        return self.most - self.before


@pytest.mark.slow
async def test_many_at_once_are_answered_as_if_alone_and_share_a_few_threads(
    chat: ChatInferenceBridge, answers: list[str]
) -> None:
    with Threads() as threads:
        said = await asyncio.gather(*(chat.ainvoke(question(number)) for number in range(32)))
    assert [message.text for message in said] == answers * 4
    assert threads.more <= MAX_THREADS  # for what takes long before the first token


@pytest.mark.slow
def test_a_batch_larger_than_the_slots(chat: ChatInferenceBridge, answers: list[str]) -> None:
    with Threads() as threads:
        said = chat.batch([question(number) for number in range(64)])
    assert [message.text for message in said] == answers * 8
    assert threads.more <= 2 * SLOTS


@pytest.mark.slow
async def test_an_asynchronous_batch(chat: ChatInferenceBridge, answers: list[str]) -> None:
    with Threads() as threads:
        said = await chat.abatch([question(number) for number in range(64)])
    assert [message.text for message in said] == answers * 8
    assert threads.more <= MAX_THREADS  # for what takes long before the first token


async def test_cancelled_tasks_free_their_slots(
    chat: ChatInferenceBridge, answers: list[str], model: TextModel
) -> None:
    endless = chat.model_copy(update={"max_tokens": -1})

    async def consume(started: asyncio.Event) -> None:
        async for _ in endless.astream("Count from 1 to 1000."):
            started.set()

    started = [asyncio.Event() for _ in range(SLOTS)]
    tasks = [asyncio.create_task(consume(event)) for event in started]
    await asyncio.gather(*(event.wait() for event in started))
    # Created only now, because operations begin in order of creation, and these would not end in time.
    tasks += [asyncio.create_task(endless.ainvoke("Count from 1 to 1000.")) for _ in range(SLOTS)]  # type: ignore[arg-type]
    await auntil(lambda: len(model._life.running) == len(tasks))
    for task in tasks:
        task.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True))
    assert (await chat.ainvoke(question(0))).text == answers[0]
    assert not model._life.running


def test_leaving_a_stream_early_frees_its_slot(chat: ChatInferenceBridge, model: TextModel) -> None:
    endless = chat.model_copy(update={"max_tokens": -1})
    for _ in range(2 * SLOTS):
        stream = endless.stream("Count from 1 to 1000.")
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    assert not model._life.running


def test_stream_and_invoke_say_the_same(chat: ChatInferenceBridge, answers: list[str]) -> None:
    chunks = list(chat.stream(question(0)))
    assert len(chunks) > 5
    assert "".join(chunk.text for chunk in chunks) == answers[0]
    message = chat.invoke(question(0))
    full = chunks[0] + chunks[1:]
    assert isinstance(full, AIMessageChunk)
    assert full.usage_metadata is not None
    assert message.usage_metadata is not None
    assert full.usage_metadata["output_tokens"] == message.usage_metadata["output_tokens"]
    assert full.response_metadata["finish_reason"] == message.response_metadata["finish_reason"] == "stop"


def test_stop_ends_the_answer(chat: ChatInferenceBridge) -> None:
    assert chat.invoke(question(0), stop=[" is"]).text == "The capital of France"


def test_log_probabilities(chat: ChatInferenceBridge) -> None:
    logprobs = chat.bind(logprobs=2).invoke(question(0)).response_metadata["logprobs"]["content"]
    assert "".join(item["token"] for item in logprobs) == "The capital of France is Paris."
    assert all(item["logprob"] == item["top_logprobs"][0]["logprob"] <= 0 for item in logprobs)
    assert all(len(item["top_logprobs"]) == 2 for item in logprobs)


def test_tokens_are_counted(chat: ChatInferenceBridge, model: TextModel) -> None:
    assert chat.get_num_tokens("The capital of France is Paris.") == model.count_tokens(
        "The capital of France is Paris."
    )


def test_a_prompt_over_the_context(chat: ChatInferenceBridge) -> None:
    with pytest.raises(ContextLengthExceededError, match="the context window holds 512"):
        chat.invoke("word " * 600)


# ---------------------------------------------------------------- held by a grammar


@tool
def get_weather(location: str) -> str:
    """Get weather at a location."""
    return "It's sunny."


def test_a_loop_with_a_tool(chat: ChatInferenceBridge) -> None:
    asked = HumanMessage("What is the weather in San Francisco, CA?")
    calling = chat.bind_tools([get_weather], tool_choice="get_weather").invoke([asked], max_tokens=60)
    (call,) = calling.tool_calls
    assert (call["name"], list(call["args"])) == ("get_weather", ["location"])
    assert "San Francisco" in call["args"]["location"]
    result: BaseMessage = get_weather.invoke(call)
    final = chat.bind_tools([get_weather], tool_choice="none").invoke([asked, calling, result])
    assert final.text
    assert not final.tool_calls


def test_a_forced_call_that_the_limit_cuts_off(chat: ChatInferenceBridge) -> None:
    forced = chat.bind_tools([get_weather], tool_choice="any", max_tokens=21)
    with pytest.raises(GenerationError, match="max_tokens"):
        forced.invoke("What is the weather in San Francisco, CA?")
    with pytest.raises(GenerationError, match="max_tokens"):
        list(forced.stream("What is the weather in San Francisco, CA?"))


class Colour(BaseModel):
    """A colour."""

    name: Literal["red", "green", "blue"]
    warm: bool


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
async def test_structured_output_over_a_batch(chat: ChatInferenceBridge, method: Any) -> None:
    structured = chat.with_structured_output(Colour, method=method, max_tokens=60)
    texts = ["The sky is blue.", "Grass is green.", "Blood is red."] * 2
    found = await structured.abatch(list(texts))
    assert all(isinstance(colour, Colour) for colour in found)
    assert found == structured.batch(list(texts))
    *_, last = structured.stream(texts[0])
    assert last == found[0]


def test_a_schema_with_tools_allows_an_answer_or_a_call(chat: ChatInferenceBridge) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "colour", "schema": Colour.model_json_schema()}}
    either = chat.bind_tools([get_weather], strict=True, response_format=schema, max_tokens=60)
    for text in ("The sky is blue.", "What is the weather in Paris?"):
        message = either.invoke(text)
        if message.tool_calls:
            assert message.tool_calls[0]["name"] == "get_weather"
        else:
            Colour.model_validate_json(message.text)


def test_structured_output_that_the_limit_cuts_off(chat: ChatInferenceBridge) -> None:
    from langchain_core.exceptions import OutputParserException

    errors: dict[Any, type[Exception]] = {"json_schema": OutputParserException, "function_calling": GenerationError}
    for method, error in errors.items():
        cut: Any = chat.with_structured_output(Colour, method=method, max_tokens=3)
        with pytest.raises(error, match="max_tokens"):
            cut.invoke("The sky is blue.")
        with pytest.raises(error, match="max_tokens"):
            list(cut.stream("The sky is blue."))
    raw = chat.with_structured_output(Colour, include_raw=True, max_tokens=3).invoke("The sky is blue.")
    assert isinstance(raw["raw"], AIMessage)
    assert "allow more max_tokens" in str(raw["parsing_error"])


# ---------------------------------------------------------------- there and back


async def test_a_chat_model_as_a_text_model_again(chat: ChatInferenceBridge, answers: list[str]) -> None:
    model = LangChainTextModel(chat)
    turns = [Message("user", question(0))]
    stream = model.chat(turns)
    assert stream.text() == answers[0]
    assert stream.finish_reason == "stop"
    assert stream.metrics.prompt_tokens > 10
    assert await model.achat(turns, stop=[" is"]).text() == "The capital of France"
    schema = {"type": "object", "properties": {"name": {"enum": ["red", "blue"]}}, "required": ["name"]}
    assert model.chat([Message("user", "The sky is blue.")], json_schema=schema).text() in (
        '{"name": "red"}',
        '{"name": "blue"}',
    )
    assert model.count_tokens("The capital") == chat.get_num_tokens("The capital")


class Life(BaseModel):
    name: str
    story: str = Field(max_length=60)


def test_json_that_was_shortened_says_so_in_its_metadata(model: TextModel) -> None:
    chat = ChatInferenceBridge(text_model=model, temperature=0)
    format = {"type": "json_schema", "json_schema": {"name": "Life", "schema": Life.model_json_schema()}}
    for limit, shortened in ((16, True), (256, False)):
        asked = chat.bind(response_format=format, max_tokens=limit)
        answer = asked.invoke("Invent a person. The story has five words.")
        *_, last = asked.stream("Invent a person. The story has five words.")
        Life.model_validate_json(str(answer.text))
        assert answer.response_metadata.get("shortened", False) is shortened
        assert last.response_metadata.get("shortened", False) is shortened
