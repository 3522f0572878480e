# SPDX-License-Identifier: Apache-2.0
"""ChatInferenceBridge: its fields, the options of calls, and shared models."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import ContextOverflowError
from langchain_core.load import dumpd, dumps, load
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from pydantic import BaseModel, Field, SecretStr, ValidationError

import inference_bridge as ib
from inference_bridge import (
    ContextLengthExceededError,
    GenerateConfig,
    LoadConfig,
    Request,
    ServerError,
    TextModel,
    Token,
    UnsupportedError,
    registry,
)
from langchain_inference_bridge import ChatInferenceBridge, PromptTooLongError, shared

from ...parts.leaks import threads_since
from ...parts.models.tiny import Words, WordsBackend, until


class Echo(TextModel):
    """Repeats the last message, records its requests, and first fails a given number of times."""

    backend = "echo"
    model_type = "play"
    info = ib.ModelInfo(architecture="play", context_length=100)
    capabilities = frozenset({"json_schema", "logprobs", "reasoning", "tools"})
    options = frozenset({"temperature", "top_k", "top_p", "min_p", "repeat_penalty", "stop", "seed"})

    def __init__(self, failures: Sequence[Exception] = ()) -> None:
        self.failures = list(failures)
        self.requests: list[Request] = []

    def _run(self, request: Request) -> Iterator[Token]:
        self.requests.append(request)
        if self.failures:
            raise self.failures.pop(0)
        yield Token(request.messages[-1].text)

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def close(self) -> None:
        pass

    @property
    def config(self) -> GenerateConfig:
        return self.requests[-1].config


class EchoBackend(WordsBackend):
    """Loads an Echo for every source, and waits for `gate` while it does."""

    load_options = None

    def __init__(self) -> None:
        super().__init__("echo")
        self.gate = threading.Event()
        self.gate.set()
        self.models: list[Echo] = []
        self.configs: list[LoadConfig] = []
        self.failures: list[BaseException] = []

    def load_model(self, source: str, config: LoadConfig) -> TextModel:
        self.gate.wait(20)
        self.configs.append(config)
        if self.failures:
            raise self.failures.pop(0)
        self.models.append(Echo())
        return self.models[-1]


@pytest.fixture(autouse=True)
def backend(no_backends: None, monkeypatch: pytest.MonkeyPatch) -> EchoBackend:
    """The only backend. No model is loaded."""
    monkeypatch.setattr(shared, "_entries", weakref.WeakValueDictionary())
    monkeypatch.setattr(shared, "_last", {})
    backend = EchoBackend()
    registry.register(backend)
    return backend


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def chat(echo: Echo) -> ChatInferenceBridge:
    return ChatInferenceBridge(text_model=echo)


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


@tool
def clock() -> str:
    """The time."""
    return "noon"


class Person(BaseModel):
    """A person."""

    name: str = Field(description="full name")
    age: int | None = None


# ---------------------------------------------------------------- fields


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "set either model"),
        ({"model": "echo:x", "text_model": Echo()}, "set either model"),
        ({"model": "echo:x", "temprature": 1}, "no field 'temprature': did you mean 'temperature'"),
        ({"model": "echo:x", "temperature": -1}, "temperature must be at least 0"),
        ({"model": "echo:x", "max_tokens": 0}, "max_tokens must be at least 1"),
        ({"model": "echo:x", "context_length": -1}, "context_length must be at least 0"),
        ({"model": "echo:x", "reasoning": "much"}, "reasoning"),
        ({"model": "echo:x", "max_retries": -1}, "max_retries"),
        ({"text_model": Echo(), "server_model": "m"}, "server_model is an option for loading a model"),
        ({"text_model": Echo(), "api_key": "k"}, "api_key is an option for loading a model"),
        ({"model": "https://ann:hush@gpu.example/v1"}, "use api_key or headers"),
    ],
)
def test_wrong_fields_are_refused_by_the_constructor(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        ChatInferenceBridge(**fields)


def test_errors_do_not_show_secrets() -> None:
    wrong: list[dict[str, Any]] = [
        {"model": "https://ann:hush@gpu.example/v1"},
        {"model": "echo:x", "api_key": ["hush"]},
        {"model": "echo:x", "headers": {"authorization": b"hush\xff"}},
        {"model": "echo:x", "api_key": "hush", "temperature": "hot"},
    ]
    for fields in wrong:
        with pytest.raises(ValidationError) as caught:
            ChatInferenceBridge(**fields)
        assert "hush" not in str(caught.value)


def test_load_fields_reach_the_backend(backend: EchoBackend, tmp_path: Any) -> None:
    chat = ChatInferenceBridge(
        model="echo:x",
        context_length=64,
        adapters=tmp_path / "a.gguf",
        server_model="m",
        api_key=SecretStr("hush"),
        headers={"x-y": "z"},
        extra={"n": 1},
    )
    assert backend.configs == []
    chat.invoke("hello")
    ChatInferenceBridge(model="echo:y", adapters=[tmp_path / "a.gguf", "b.gguf"]).load()
    assert backend.configs.pop() == LoadConfig(adapters=[str(tmp_path / "a.gguf"), "b.gguf"])
    assert backend.configs == [
        LoadConfig(
            context_length=64,
            adapters=[str(tmp_path / "a.gguf")],
            model="m",
            api_key="hush",
            headers={"x-y": "z"},
            extra={"n": 1},
        )
    ]


def test_the_model_may_be_a_path(tmp_path: Path) -> None:
    path: Any = tmp_path / "m.gguf"
    assert ChatInferenceBridge(model=path).model == str(path)


# ---------------------------------------------------------------- options of a call


def test_unset_options_are_the_models_recommended_ones(chat: ChatInferenceBridge, echo: Echo) -> None:
    chat.invoke("hello")  # in a context of fewer tokens than the bound
    assert echo.config == GenerateConfig(max_tokens=-1, temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)
    echo.recommended = GenerateConfig(temperature=0.6, top_k=20, top_p=0.9, min_p=0)
    chat.invoke("hello")
    assert echo.config == GenerateConfig(max_tokens=-1, temperature=0.6, top_k=20, top_p=0.9, min_p=0)
    chat.invoke("hello", temperature=0)
    assert echo.config == GenerateConfig(max_tokens=-1, temperature=0)
    echo.defaults = GenerateConfig(temperature=0.2, max_tokens=9)
    chat.invoke("hello")
    assert echo.config == GenerateConfig(max_tokens=9, temperature=0.2)


class Wordy(Echo):
    """Says the message again, a word a token, in a context larger than any answer."""

    info = ib.ModelInfo(architecture="play", context_length=100_000)

    def _run(self, request: Request) -> Iterator[Token]:
        for word in request.messages[-1].text.split():
            yield Token(word)


async def test_an_answer_cut_off_by_the_adapter_s_default_limit_is_a_warning() -> None:
    chat = ChatInferenceBridge(text_model=Wordy())
    long = " ".join(["word"] * 5000)
    with pytest.warns(RuntimeWarning, match="4096"):
        answer = chat.invoke(long)
    assert answer.response_metadata["finish_reason"] == "length"
    assert "max_tokens" in answer.response_metadata["cut_off"]
    with pytest.warns(RuntimeWarning, match="4096"):
        assert (await chat.ainvoke(long)).usage_metadata["output_tokens"] == 4096  # type: ignore[index]
    with pytest.warns(RuntimeWarning, match="4096"):
        *_, last = chat.stream(long)
    assert "cut_off" in last.response_metadata
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked = chat.invoke(long, max_tokens=7)  # the caller's own limit is not news
        assert "7 tokens" in asked.response_metadata["cut_off"]
        assert "cut_off" not in chat.invoke("hello").response_metadata


def test_a_calls_options_go_over_the_fields(echo: Echo) -> None:
    chat = ChatInferenceBridge(text_model=echo, temperature=0.5, top_k=40, max_tokens=5, stop="x", seed=1)
    chat.invoke("hello")
    assert echo.config == GenerateConfig(temperature=0.5, top_k=40, max_tokens=5, stop=["x"], seed=1)
    chat.invoke("hello", stop=["y"], top_k=0, max_tokens=7, logprobs=True, reasoning="low")
    assert echo.config == GenerateConfig(
        temperature=0.5, top_k=0, max_tokens=7, stop=["y"], seed=1, logprobs=1, reasoning="low"
    )


async def test_wrong_options_are_typed_errors_in_every_method(chat: ChatInferenceBridge) -> None:
    for options, error, problem in (
        ({"temprature": 1}, TypeError, "unknown generation option 'temprature': did you mean 'temperature'"),
        ({"temperature": -1}, ValueError, "temperature must be"),
        ({"presence_penalty": 1}, UnsupportedError, "echo does not support presence_penalty"),
        ({"tool_choice": "any"}, ValueError, "tool_choice='required' needs tools"),
        ({"response_format": {"type": "xml"}}, ValueError, "response_format must be"),
    ):
        with pytest.raises(error, match=problem):
            chat.invoke("hello", **options)
        with pytest.raises(error, match=problem):
            await chat.ainvoke("hello", **options)
        with pytest.raises(error, match=problem):
            list(chat.stream("hello", **options))
        with pytest.raises(error, match=problem):
            async for _ in chat.astream("hello", **options):
                pass


def test_a_call_may_name_another_model(backend: EchoBackend, chat: ChatInferenceBridge) -> None:
    loading = ChatInferenceBridge(model="echo:x", context_length=64)
    assert loading.invoke("hello", model="echo:y").response_metadata["model_name"] == "echo:y"
    assert loading.invoke("hello").response_metadata["model_name"] == "echo:x"
    assert [config.context_length for config in backend.configs] == [64, 64]
    with pytest.raises(ValueError, match="can't replace text_model"):
        chat.invoke("hello", model="echo:y")


# ---------------------------------------------------------------- tools and schemas

ONE, TWO = [weather], [weather, clock]


@pytest.mark.parametrize(
    ("tools", "choice", "expected"),
    [
        (TWO, None, None),
        (TWO, False, None),
        (TWO, "auto", "auto"),
        (TWO, "none", "none"),
        (TWO, "any", "required"),
        (TWO, "required", "required"),
        (TWO, True, "required"),
        (ONE, "any", "weather"),
        (ONE, True, "weather"),
        (TWO, "clock", "clock"),
        (TWO, {"type": "function", "function": {"name": "clock"}}, "clock"),
        (TWO, {"type": "function", "name": "clock"}, "clock"),
        (TWO, {"type": "tool", "name": "clock"}, "clock"),
        (TWO, {"type": "any"}, "required"),
        (TWO, {"type": "auto"}, "auto"),
        (TWO, {"type": "none"}, "none"),
    ],
)
def test_tool_choice(chat: ChatInferenceBridge, echo: Echo, tools: list[Any], choice: Any, expected: str) -> None:
    chat.bind_tools(tools, tool_choice=choice).invoke("hello")
    assert echo.config.tool_choice == expected
    assert [bound.name for bound in echo.config.tools or ()] == [made.name for made in tools]  # type: ignore[union-attr]
    chat.invoke("hello", tools=tools, tool_choice=choice)
    assert echo.config.tool_choice == expected


@pytest.mark.parametrize("choice", ["wether", {"type": "function", "function": {"name": "x"}}, {"type": "x"}, 3, {}])
def test_a_choice_that_is_not_one_of_the_tools_is_refused(chat: ChatInferenceBridge, choice: Any) -> None:
    if choice == {}:
        chat.bind_tools(TWO, tool_choice=choice)
        return
    with pytest.raises(ValueError, match="use one of auto, none, any, weather, clock"):
        chat.bind_tools(TWO, tool_choice=choice)


def test_tools_of_every_kind(chat: ChatInferenceBridge, echo: Echo) -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    class Sum(TypedDict):
        """A sum."""

        total: int

    anthropic = {"name": "pick", "input_schema": {"type": "object", "properties": {}}, "description": "Pick."}
    responses = {"type": "function", "name": "flat", "description": "Flat.", "parameters": {"type": "object"}}
    chat.bind_tools([weather, add, Person, Sum, anthropic, responses]).invoke("hello")
    bound = [made.to_dict()["function"] for made in echo.config.tools or ()]  # type: ignore[union-attr]
    assert [function["name"] for function in bound] == ["weather", "add", "Person", "Sum", "pick", "flat"]
    assert bound[1]["description"] == "Add two numbers."
    assert bound[1]["parameters"]["required"] == ["a", "b"]
    with pytest.raises(ValueError, match="'web_search' runs at its provider"):
        chat.bind_tools([{"type": "web_search"}])


def test_structured_output_by_schema(echo: Echo, chat: ChatInferenceBridge) -> None:
    said = '{"name": "Ann", "age": 3}'
    assert chat.with_structured_output(Person).invoke(said) == Person(name="Ann", age=3)
    assert echo.config.json_schema == Person.model_json_schema()
    assert chat.with_structured_output(Person.model_json_schema()).invoke(said) == {"name": "Ann", "age": 3}
    assert chat.with_structured_output(Person, strict=True, temperature=0.5).invoke(said) == Person(name="Ann", age=3)
    assert echo.config.temperature == 0.5

    class Named(TypedDict):
        """Somebody."""

        name: str

    assert chat.with_structured_output(Named).invoke(said) == {"name": "Ann", "age": 3}
    assert echo.config.json_schema is not None
    assert echo.config.json_schema["required"] == ["name"]
    untitled = {"type": "object", "properties": {"name": {"type": "string"}}}
    assert chat.with_structured_output(untitled).invoke(said) == {"name": "Ann", "age": 3}
    assert echo.config.json_schema == untitled


def test_structured_output_in_json_mode(echo: Echo, chat: ChatInferenceBridge) -> None:
    assert chat.with_structured_output(method="json_mode").invoke('{"x": 1}') == {"x": 1}
    assert echo.config.json_schema == {"type": "object"}
    assert chat.with_structured_output(Person, method="json_mode").invoke('{"name": "Ann"}') == Person(name="Ann")
    assert echo.config.json_schema == Person.model_json_schema()


def test_a_response_format_in_each_of_its_forms(echo: Echo, chat: ChatInferenceBridge) -> None:
    chat.invoke("{}", response_format=Person)
    assert echo.config.json_schema == Person.model_json_schema()
    chat.invoke("{}", response_format={"type": "text"})
    assert echo.config.json_schema is None
    for wrong in ({"type": "grammar"}, {"type": "json_schema", "json_schema": {}}, "json_object"):
        with pytest.raises(ValueError, match="response_format must be"):
            chat.invoke("{}", response_format=wrong)


def test_structured_output_has_the_raw_message_and_the_parsing_error(chat: ChatInferenceBridge) -> None:
    structured = chat.with_structured_output(Person, include_raw=True)
    good = structured.invoke('{"name": "Ann"}')
    assert (good["parsed"], good["parsing_error"]) == (Person(name="Ann"), None)
    assert isinstance(good["raw"], AIMessage)
    bad = structured.invoke('{"age": 3}')
    assert bad["parsed"] is None
    assert "name" in str(bad["parsing_error"])


def test_wrong_arguments_of_structured_output_are_refused_immediately(chat: ChatInferenceBridge) -> None:
    with pytest.raises(ValueError, match="method is one of json_schema, function_calling, json_mode"):
        chat.with_structured_output(Person, method="grammar")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'json_schema' needs a schema"):
        chat.with_structured_output()


def test_a_recursive_schema_is_handed_over_as_it_is(echo: Echo, chat: ChatInferenceBridge) -> None:
    class Tree(BaseModel):
        leaves: list[Tree] = []

    Tree.model_rebuild(_types_namespace={"Tree": Tree})
    assert chat.with_structured_output(Tree).invoke('{"leaves": [{}]}') == Tree(leaves=[Tree()])
    assert echo.config.json_schema == Tree.model_json_schema()


# ---------------------------------------------------------------- errors


def test_the_error_for_a_long_prompt_is_the_one_that_middleware_expects() -> None:
    chat = ChatInferenceBridge(text_model=Echo([ContextLengthExceededError(200, 100)]))
    with pytest.raises(ContextOverflowError) as caught:
        chat.invoke("hello")
    assert isinstance(caught.value, ContextLengthExceededError)
    assert isinstance(caught.value, PromptTooLongError)
    assert (caught.value.prompt_tokens, caught.value.context_length) == (200, 100)


@pytest.fixture
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChatInferenceBridge, "_pause", _hasty(ChatInferenceBridge._pause))


def _hasty(pause: Any) -> Any:
    return lambda *given: 0 * pause(*given)


@pytest.mark.usefixtures("_no_pause")
async def test_a_temporary_failure_of_a_server_is_retried() -> None:
    busy = ServerError("busy", status=503)

    def failing(times: int) -> ChatInferenceBridge:
        return ChatInferenceBridge(text_model=Echo([busy] * times), max_retries=2)

    assert failing(2).invoke("hello").content == "hello"
    assert (await failing(2).ainvoke("hello")).content == "hello"
    assert "".join(chunk.text for chunk in failing(2).stream("hello")) == "hello"
    assert "".join([chunk.text async for chunk in failing(2).astream("hello")]) == "hello"
    with pytest.raises(ServerError, match="busy"):
        failing(3).invoke("hello")
    with pytest.raises(ServerError, match="busy"):
        await failing(3).ainvoke("hello")


def test_a_refusal_of_a_server_is_not_retried() -> None:
    model = Echo([ServerError("who are you?", status=401)])
    with pytest.raises(ServerError, match="who are you"):
        ChatInferenceBridge(text_model=model, max_retries=2).invoke("hello")
    assert len(model.requests) == 1


# ---------------------------------------------------------------- one model for many


def test_equal_specifications_share_one_model(backend: EchoBackend) -> None:
    first = ChatInferenceBridge(model="echo:x", context_length=64)
    second = ChatInferenceBridge(model="echo:x", context_length=64, temperature=1)
    other = ChatInferenceBridge(model="echo:x", context_length=65)
    assert backend.models == []
    assert first.load() is second.load()
    assert other.load() is not first.load()
    assert len(backend.models) == 2


def test_a_model_is_closed_by_the_last_that_uses_it(backend: EchoBackend) -> None:
    first, second = (ChatInferenceBridge(model="echo:x") for _ in range(2))
    model = first.load()
    second.load()
    first.close()
    assert not model.closed
    second.close()
    assert model.closed
    second.close()
    assert first.invoke("hello").content == "hello"
    assert len(backend.models) == 2


def test_a_deleted_chat_model_neither_keeps_nor_closes_a_shared_model(backend: EchoBackend) -> None:
    ChatInferenceBridge(model="echo:x").invoke("hello")
    gc.collect()
    chat = ChatInferenceBridge(model="echo:x")
    chat.invoke("hello")
    (model,) = backend.models
    chat.close()
    assert model.closed


def test_a_copy_counts_as_another_user_of_the_model(backend: EchoBackend) -> None:
    chat = ChatInferenceBridge(model="echo:x", temperature=0.5)
    model = chat.load()
    copied = chat.model_copy(update={"temperature": 1.0})
    assert copied._get_llm_string() != chat._get_llm_string()
    copied.load()
    chat.close()
    assert not model.closed
    copied.close()
    assert model.closed


def test_a_model_closed_elsewhere_is_loaded_again(backend: EchoBackend) -> None:
    chat = ChatInferenceBridge(model="echo:x")
    chat.load().close()
    assert chat.invoke("hello").content == "hello"
    assert len(backend.models) == 2


async def test_with_releases_the_model(backend: EchoBackend) -> None:
    with ChatInferenceBridge(model="echo:x") as chat:
        chat.invoke("hello")
    async with ChatInferenceBridge(model="echo:x") as chat:
        await chat.ainvoke("hello")
    assert [model.closed for model in backend.models] == [True, True]


def test_a_given_model_is_not_closed(echo: Echo) -> None:
    with ChatInferenceBridge(text_model=echo) as chat:
        assert chat.load() is echo
    assert not echo.closed


async def test_concurrent_calls_load_the_model_once(backend: EchoBackend) -> None:
    backend.gate.clear()
    chats = [ChatInferenceBridge(model="echo:x") for _ in range(40)]
    before = threading.enumerate()
    tasks = [asyncio.create_task(chat.aload()) for chat in chats]
    await asyncio.sleep(0.05)
    assert len(threads_since(before)) <= 1
    tasks[0].cancel()  # the cancellation does not end the waits of other calls, although this one began to load
    await asyncio.sleep(0.05)
    backend.gate.set()
    assert {id(model) for model in await asyncio.gather(*tasks[1:])} == {id(backend.models[0])}
    assert tasks[0].cancelled()
    assert len(backend.models) == 1


def test_loading_that_fails_is_tried_again(backend: EchoBackend) -> None:
    backend.failures = [ib.ModelLoadError("no memory")]
    chat = ChatInferenceBridge(model="echo:x")
    with pytest.raises(ib.ModelLoadError, match="no memory"):
        chat.invoke("hello")
    assert chat.invoke("hello").content == "hello"


def test_an_interrupt_while_loading_reaches_all_waiting_calls(backend: EchoBackend) -> None:
    backend.gate.clear()
    backend.failures = [KeyboardInterrupt()]
    chat = ChatInferenceBridge(model="echo:x")
    interrupted: list[BaseException] = []

    def load() -> None:
        try:
            chat.load()
        except BaseException as error:
            interrupted.append(error)

    loading = threading.Thread(target=load)
    loading.start()
    until(lambda: bool(shared._entries))
    waiting = threading.Thread(target=load)
    (entry,) = shared._entries.values()
    waiting.start()
    backend.gate.set()
    loading.join()
    waiting.join()
    kinds = {type(error) for error in interrupted}
    assert kinds <= {KeyboardInterrupt, ib.ModelLoadError}
    assert "loading echo:x was interrupted" in str(entry.loaded.exception())
    assert chat.invoke("hello").content == "hello"


# ---------------------------------------------------------------- batches


def test_a_batch_runs_as_many_calls_as_there_are_slots() -> None:
    class Slots(Words):
        parallel = 8

        def __init__(self) -> None:
            super().__init__()
            self.full = threading.Barrier(self.parallel)
            self.threads: set[int] = set()

        def _run(self, request: Request) -> Iterator[Token]:
            self.threads.add(threading.get_ident())
            if int(request.messages[-1].text) < self.parallel:
                self.full.wait(20)  # the first streams continue only together
            return super()._run(request)

    inputs = [str(number) for number in range(64)]
    model = Slots()
    chat = ChatInferenceBridge(text_model=model)
    assert [message.content for message in chat.batch(list(inputs))] == inputs
    assert 8 <= len(model.threads) <= 16

    model = Slots()
    chat = ChatInferenceBridge(text_model=model)
    done = {index: message.content for index, message in chat.batch_as_completed(inputs)}  # type: ignore[union-attr]
    assert [done[index] for index in range(64)] == inputs

    model = Slots()
    parts = ChatPromptTemplate.from_messages([("human", "{n}")]) | ChatInferenceBridge(text_model=model)
    assert [answer.text for answer in parts.batch([{"n": n} for n in inputs])] == inputs

    model = Slots()
    model.full = threading.Barrier(1)
    ChatInferenceBridge(text_model=model).batch(list(inputs), {"max_concurrency": 2})
    assert len(model.threads) <= 2


def test_a_batch_of_a_model_that_does_not_load(backend: EchoBackend) -> None:
    backend.failures = [ib.ModelLoadError("no memory")] * 3
    results: list[Any] = ChatInferenceBridge(model="echo:x").batch(["a", "b"], return_exceptions=True)
    assert [type(result) for result in results] == [ib.ModelLoadError, ib.ModelLoadError]
    assert ChatInferenceBridge(model="echo:x").batch([]) == []


# ---------------------------------------------------------------- LangChain's interfaces


def test_profile_is_known_after_the_model_is_loaded(backend: EchoBackend, chat: ChatInferenceBridge) -> None:
    assert chat.profile is not None
    assert chat.profile["max_input_tokens"] == 100
    assert chat.profile["tool_calling"]
    assert chat.profile["structured_output"]
    assert not chat.profile["image_inputs"]
    loading = ChatInferenceBridge(model="echo:x")
    assert loading.profile is None
    loading.load()
    assert loading.profile == chat.profile
    assert ChatInferenceBridge(model="echo:x").profile == chat.profile
    assert ChatInferenceBridge(model="echo:x", profile={"name": "mine"}).profile == {"name": "mine"}


def test_tokens_are_counted_by_the_models_tokenizer(chat: ChatInferenceBridge) -> None:
    assert chat.get_num_tokens("one two three") == 3
    assert chat.get_num_tokens_from_messages([HumanMessage("one two")]) == 3
    with pytest.raises(UnsupportedError, match="get_num_tokens counts"):
        chat.get_token_ids("one")
    own = ChatInferenceBridge(text_model=chat.load(), custom_get_token_ids=lambda text: [1, 2])
    assert (own.get_num_tokens("one"), own.get_token_ids("one")) == (2, [1, 2])


def test_traces_have_the_model_and_the_options() -> None:
    chat = ChatInferenceBridge(model="echo:x", temperature=0.5, max_tokens=7, stop="x")
    expected = {
        "ls_provider": "inference-bridge",
        "ls_model_type": "chat",
        "ls_model_name": "echo:x",
        "ls_temperature": 0.5,
        "ls_max_tokens": 7,
        "ls_stop": ["x"],
    }
    assert chat._get_ls_params() == expected
    if hasattr(chat, "_add_version"):  # newer than langchain-core 1.4
        assert chat.metadata is not None
        assert chat.metadata["lc_versions"]["inference-bridge"] == ib.__version__
    assert chat._get_ls_params(stop=["y"], model="echo:z") == expected | {"ls_stop": ["y"], "ls_model_name": "echo:z"}
    assert ChatInferenceBridge(text_model=Echo())._get_ls_params()["ls_model_name"] == "echo:play"


SECRET: dict[str, Any] = {
    "model": "echo:x",
    "api_key": "hush",
    "headers": {"authorization": "hush"},
    "temperature": 0.5,
}


def test_reprs_and_serialisation_do_not_show_secrets(backend: EchoBackend) -> None:
    chat = ChatInferenceBridge(**SECRET)
    chat.invoke("hello")
    shown = [repr(chat), str(chat), dumps(chat), json.dumps(chat._get_invocation_params()), chat._get_llm_string()]
    assert not [text for text in shown if "hush" in text]
    assert dumpd(chat)["kwargs"] == {
        "model": "echo:x",
        "temperature": 0.5,
        "api_key": {"lc": 1, "type": "secret", "id": ["INFERENCE_BRIDGE_API_KEY"]},
        "headers": {"lc": 1, "type": "secret", "id": ["INFERENCE_BRIDGE_HEADERS"]},
    }


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_a_chat_model_survives_serialisation() -> None:
    chat = ChatInferenceBridge(**SECRET, max_tokens=7, stop=["x"], template_options={"a": [1]})
    again = load(
        dumpd(chat),
        allowed_objects=[ChatInferenceBridge],
        valid_namespaces=["langchain_inference_bridge"],
        secrets_map={"INFERENCE_BRIDGE_API_KEY": "hush", "INFERENCE_BRIDGE_HEADERS": {"authorization": "hush"}},  # type: ignore[dict-item]
    )
    assert isinstance(again, ChatInferenceBridge)
    assert again == chat
    assert again.load_config() == chat.load_config()


def test_a_live_model_is_not_serialised(chat: ChatInferenceBridge) -> None:
    assert dumpd(chat)["type"] == "not_implemented"


def test_cache_keys_depend_on_models_and_options(chat: ChatInferenceBridge, echo: Echo) -> None:
    cache = InMemoryCache()

    def asked(model: Echo, **fields: Any) -> int:
        ChatInferenceBridge(text_model=model, cache=cache, **fields).invoke("hello")
        return len(model.requests)

    assert asked(echo) == 1
    assert asked(echo) == 1
    assert asked(echo, temperature=0.5) == 2
    assert asked(Echo()) == 1
    loading = ChatInferenceBridge(model="echo:x", cache=cache)
    loading.invoke("hello")
    loading.invoke("hello")
    loading.invoke("hello", top_k=3)
    model = loading.load()
    assert isinstance(model, Echo)
    assert len(model.requests) == 2


def test_configurable_fields_and_alternatives(backend: EchoBackend) -> None:
    chat = ChatInferenceBridge(model="echo:x")
    configurable = chat.configurable_fields(temperature=ConfigurableField("warmth")).configurable_alternatives(
        ConfigurableField("who"), other=ChatInferenceBridge(model="echo:y")
    )
    configurable.invoke("hello", {"configurable": {"warmth": 0.5}})
    (model,) = backend.models
    assert model.config.temperature == 0.5
    answer = configurable.invoke("hello", {"configurable": {"who": "other"}})
    assert answer.response_metadata["model_name"] == "echo:y"
    assert len(backend.models) == 2


def test_a_chain(chat: ChatInferenceBridge) -> None:
    chain = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "Say {word}")]) | chat
    assert (chain | StrOutputParser()).invoke({"word": "yes"}) == "Say yes"
    assert "".join((chain | StrOutputParser()).stream({"word": "yes"})) == "Say yes"
