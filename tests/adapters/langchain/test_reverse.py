# SPDX-License-Identifier: Apache-2.0
"""LangChain chat models as TextModels."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.language_models import BaseChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import Field, PrivateAttr

from inference_bridge import (
    ContextLengthExceededError,
    GenerateConfig,
    GenerationError,
    GenerationTimeoutError,
    Message,
    ModelClosedError,
    ServerError,
    Token,
    Tool,
    ToolCall,
    ToolCallCutError,
    ToolCallDelta,
    UnsupportedError,
)
from langchain_inference_bridge import ChatInferenceBridge, LangChainTextModel

Said = AIMessageChunk | Exception | threading.Event


class Provider(BaseChatModel):
    """A chat model like those of providers: streams `said`, waits at events, and records its requests."""

    said: Sequence[Any] = ()
    temperature: float | None = None
    num_predict: int | None = None
    asked: list[dict[str, Any]] = Field(default_factory=list)
    _closed: list[str] = PrivateAttr(default_factory=list)
    _waiting: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)

    @property
    def _llm_type(self) -> str:
        return "provider"

    def _note(self, messages: list[BaseMessage], given: dict[str, Any]) -> None:
        own = {"temperature": self.temperature, "num_predict": self.num_predict}
        self.asked.append({"messages": messages, **own, **given})

    def _stream(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        self._note(messages, {"stop": stop, **kwargs})
        try:
            for item in self.said:
                if isinstance(item, threading.Event):
                    item.wait(20)
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield ChatGenerationChunk(message=item)
        finally:
            self._closed.append("sync")

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        self._note(messages, {"stop": stop, **kwargs})
        try:
            for item in self.said:
                if isinstance(item, threading.Event):
                    self._waiting.set()
                    await asyncio.Event().wait()
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield ChatGenerationChunk(message=item)
        finally:
            self._closed.append("async")

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        chunks = list(self._stream(messages, stop, **kwargs))
        whole = chunks[0].message + [chunk.message for chunk in chunks[1:]]
        message = AIMessage(
            content=whole.content,
            tool_calls=whole.tool_calls,
            response_metadata=whole.response_metadata,
            usage_metadata=whole.usage_metadata,
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self.bind(tools=tools, tool_choice=tool_choice, **kwargs)


def text(content: str, **given: Any) -> AIMessageChunk:
    return AIMessageChunk(content=content, **given)


def usage(input: int, output: int, **details: Any) -> Any:
    return {"input_tokens": input, "output_tokens": output, "total_tokens": input + output, **details}


def call(arguments: str, index: int | None = 0, **given: Any) -> AIMessageChunk:
    chunk: Any = {"name": None, "id": None, "args": arguments, "index": index, **given}
    return AIMessageChunk(content="", tool_call_chunks=[chunk])


ANSWER = [
    text("", additional_kwargs={"reasoning_content": "hm"}, usage_metadata=usage(7, 0)),
    text("The "),
    text("answer"),
    text(
        "",
        response_metadata={"stop_reason": "max_tokens"},
        usage_metadata=usage(0, 5, input_token_details={"cache_read": 3}),
    ),
]


async def test_an_answer_as_it_streams() -> None:
    provider = Provider(said=ANSWER)
    model = LangChainTextModel(provider)
    expected = (Token("hm", kind="reasoning"), Token("The "), Token("answer"))

    stream = model.chat([Message("system", "be brief"), Message("user", "?")])
    results = [stream.result()]
    astream = model.achat([Message("system", "be brief"), Message("user", "?")])
    results.append(await astream.result())
    for result in results:
        assert result.tokens == expected
        assert (result.text, result.reasoning) == ("The answer", "hm")
        assert result.finish_reason == "length"
        metrics = result.metrics
        assert (metrics.prompt_tokens, metrics.cached_tokens, metrics.generated_tokens) == (7, 3, 5)
    assert [[(message.type, message.content) for message in asked["messages"]] for asked in provider.asked] == [
        [("system", "be brief"), ("human", "?")]
    ] * 2


async def test_a_prompt_is_sent_as_a_user_message() -> None:
    provider = Provider(said=[*ANSWER[:3], call("{}", 0, id="a", name="search"), ANSWER[3]])
    model = LangChainTextModel(provider)
    expected = (Token("The "), Token("answer"))
    assert model.generate("?").result().tokens == expected
    assert (await model.agenerate("?").result()).tokens == expected
    (message,) = provider.asked[0]["messages"]
    assert (message.type, message.content) == ("human", "?")


async def test_a_batch_is_many_prompts() -> None:
    model = LangChainTextModel(Provider(said=ANSWER))
    assert [result.text for result in model.batch_generate(["a", "b", "c"])] == ["The answer"] * 3
    assert [result.text for result in await model.abatch_generate(["a", "b"])] == ["The answer"] * 2
    (result,) = model.classify(["a"])
    assert result.token == Token("The ")


def test_only_set_options_are_sent() -> None:
    provider = Provider(said=ANSWER, temperature=0.7)
    model = LangChainTextModel(provider)
    model.chat([Message("user", "?")]).text()
    model.chat([Message("user", "?")], temperature=0, max_tokens=9, stop=["x"]).text()
    model.chat([Message("user", "?")], max_tokens=-1).text()
    rest = [{key: value for key, value in asked.items() if key != "messages"} for asked in provider.asked]
    assert rest == [
        {"temperature": 0.7, "num_predict": None, "stop": None},
        {"temperature": 0.0, "num_predict": 9, "stop": ["x"]},
        {"temperature": 0.7, "num_predict": None, "stop": None},
    ]
    assert provider.temperature == 0.7


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 1},
        {"top_k": 3},
        {"logprobs": 1},
        {"reasoning": True},
        {"json_schema": {"type": "array"}},
        {"json_schema": {"type": "object"}, "tools": [Tool("f")]},
        {"json_schema": {"type": "object"}, "stop": ["x"]},
    ],
)
def test_unsupported_options_are_refused(options: dict[str, Any]) -> None:
    provider = Provider(said=ANSWER)
    with pytest.raises(UnsupportedError, match="langchain does not support"):
        LangChainTextModel(provider).chat([Message("user", "?")], **options)
    assert provider.asked == []


def test_capabilities_are_the_chat_models() -> None:
    assert LangChainTextModel(Provider()).capabilities == {"chat", "tools", "json_schema"}
    assert LangChainTextModel(GenericFakeChatModel(messages=iter(()))).capabilities == {"chat"}

    class Structured(GenericFakeChatModel):
        def with_structured_output(self, schema: Any, **kwargs: Any) -> Any:
            return self | RunnableLambda(lambda message: message)

    assert LangChainTextModel(Structured(messages=iter(()))).capabilities == {"chat", "json_schema"}
    seeing = Provider(profile={"image_inputs": True, "audio_inputs": False, "max_input_tokens": 4096})
    model = LangChainTextModel(seeing, capabilities={"videos"})
    assert model.capabilities == {"chat", "tools", "json_schema", "images", "videos"}
    assert model.info.context_length == 4096
    assert model.options == {"temperature", "max_tokens", "stop"}


def test_only_chat_models_are_accepted() -> None:
    with pytest.raises(TypeError, match="Binding: pass the chat model itself"):
        LangChainTextModel(Provider().bind(stop=["x"]))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not RunnableLambda"):
        LangChainTextModel(RunnableLambda(lambda x: x))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="parallel must be at least 1"):
        LangChainTextModel(Provider(), parallel=0)


def test_only_supported_capabilities_may_be_added() -> None:
    with pytest.raises(ValueError, match="capabilities may add applications, audios, .* not 'logprobs'"):
        LangChainTextModel(Provider(), capabilities={"images", "logprobs"})


def test_tokens_are_counted_only_with_the_model_s_tokenizer() -> None:
    with pytest.raises(UnsupportedError, match="count_tokens"):
        LangChainTextModel(Provider()).count_tokens("a b")
    assert LangChainTextModel(Provider(custom_get_token_ids=lambda text: [1, 2])).count_tokens("a b") == 2


# ---------------------------------------------------------------- tools and schemas

TOOLS = [Tool("weather", "The weather.", {"type": "object", "properties": {"city": {"type": "string"}}})]


@pytest.mark.parametrize(
    ("choice", "sent"), [(None, None), ("auto", None), ("required", "any"), ("weather", "weather"), ("none", "absent")]
)
def test_tools_are_bound(choice: str | None, sent: str | None) -> None:
    provider = Provider(said=[call("{}", id="a", name="weather")])
    LangChainTextModel(provider).chat([Message("user", "?")], tools=TOOLS, tool_choice=choice).text()
    (asked,) = provider.asked
    assert asked.get("tool_choice", "absent") == sent
    if sent != "absent":
        assert asked["tools"] == [TOOLS[0].to_dict()]


@pytest.mark.parametrize(
    "said",
    [
        [call('{"city"', 0, id="a", name="weather"), call(': "Paris"}', 0), call("{}", 1, id="b", name="time")],
        [call('{"city": "Paris"}', None, id="a", name="weather"), call("{}", None, id="b", name="time")],
        [
            call('{"city": ', None, id="a", name="weather"),
            call('"Paris"}', None),
            call("", None, id="b", name="time"),
        ],
        [
            AIMessageChunk(
                content="",
                tool_calls=[
                    {"name": "weather", "args": {"city": "Paris"}, "id": "a"},
                    {"name": "time", "args": {}, "id": "b"},
                ],
            )
        ],
    ],
)
def test_tool_calls_in_every_shape_that_providers_stream(said: list[AIMessageChunk]) -> None:
    result = LangChainTextModel(Provider(said=said)).chat([Message("user", "?")], tools=TOOLS).result()
    assert result.tool_calls == (ToolCall("a", "weather", {"city": "Paris"}), ToolCall("b", "time", {}))
    assert result.finish_reason == "tool_calls"


def test_a_model_that_does_not_stream_is_read_too() -> None:
    said = AIMessage(
        content="so",
        tool_calls=[{"name": "weather", "args": {"city": "Paris"}, "id": "a"}],
        invalid_tool_calls=[{"name": "time", "args": "{", "id": "b", "error": None}],
    )
    fake = Provider(said=(), disable_streaming=True)
    object.__setattr__(fake, "_generate", lambda *_, **__: ChatResult(generations=[ChatGeneration(message=said)]))
    result = LangChainTextModel(fake).chat([Message("user", "?")]).result()
    assert result.tool_calls == (ToolCall("a", "weather", {"city": "Paris"}),)
    assert [token.tool_call for token in result.tokens if token.tool_call][-1] == ToolCallDelta(1, "b", "time", "{")


def test_a_conversation_with_tools_goes_over_whole() -> None:
    provider = Provider(said=ANSWER)
    turns = [
        Message("user", "?"),
        Message("assistant", "", [ToolCall("a", "weather", {"city": "Paris"})]),
        Message("tool", "sunny", tool_call_id="a", name="weather"),
    ]
    LangChainTextModel(provider).chat(turns, tools=TOOLS).text()
    human, ai, tool = provider.asked[0]["messages"]
    assert isinstance(human, HumanMessage)
    assert isinstance(ai, AIMessage)
    assert ai.tool_calls == [{"name": "weather", "args": {"city": "Paris"}, "id": "a", "type": "tool_call"}]
    assert isinstance(tool, ToolMessage)
    assert (tool.tool_call_id, tool.content) == ("a", "sunny")


@pytest.mark.parametrize("choice", ["required", "weather"])
async def test_a_forced_call_that_does_not_come_is_an_error(choice: str) -> None:
    tools = [*TOOLS, Tool("clock")]
    for said in ([text("Sure.")], [call("{}", id="a", name="clock")]):
        if choice == "required" and said[0].tool_call_chunks:
            continue
        model = LangChainTextModel(Provider(said=said))
        with pytest.raises(GenerationError, match="tool_choice"):
            model.chat([Message("user", "?")], tools=tools, tool_choice=choice).text()
        with pytest.raises(GenerationError, match="tool_choice"):
            await model.achat([Message("user", "?")], tools=tools, tool_choice=choice).text()


def test_a_forced_call_cut_off_by_the_limit_is_an_error() -> None:
    cut = text("", response_metadata={"finish_reason": "length"})
    model = LangChainTextModel(Provider(said=[call('{"city": ', id="a", name="weather"), cut]))
    with pytest.raises(ToolCallCutError):
        model.chat([Message("user", "?")], tools=TOOLS, tool_choice="weather").text()
    assert model.chat([Message("user", "?")], tools=TOOLS).result().finish_reason == "length"


SCHEMA = {"title": "A person!", "type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


async def test_json_of_a_schema_comes_by_structured_output() -> None:
    provider = Provider(said=[call('{"name": "Änn"}', 0, id="a", name="A_person_")])
    model = LangChainTextModel(provider)
    expected = ('{"name": "Änn"}', "stop")
    result = model.chat([Message("user", "?")], json_schema=SCHEMA).result()
    assert (result.text, result.finish_reason) == expected
    aresult = await model.achat([Message("user", "?")], json_schema=SCHEMA).result()
    assert (aresult.text, aresult.finish_reason) == expected
    assert provider.asked[0]["tool_choice"] == "any"


def test_an_answer_that_is_not_json_is_an_error_unless_the_limit_cut_it_off() -> None:
    prose = LangChainTextModel(Provider(said=[text("Sorry, no.")]))
    with pytest.raises(GenerationError, match="json_schema.*'Sorry, no.'"):
        prose.chat([Message("user", "?")], json_schema=SCHEMA).text()
    cut = LangChainTextModel(Provider(said=[text('{"na', response_metadata={"finish_reason": "length"})]))
    result = cut.chat([Message("user", "?")], json_schema=SCHEMA).result()
    assert (result.text, result.finish_reason) == ('{"na', "length")


async def test_an_answer_that_does_not_satisfy_its_schema_is_an_error() -> None:
    model = LangChainTextModel(Provider(said=[call('{"name": 5}', 0, id="a", name="A_person_")]))
    with pytest.raises(GenerationError, match="#/properties/name/type.* at #/name"):
        await model.achat([Message("user", "?")], json_schema=SCHEMA).text()
    with pytest.raises(GenerationError, match="#/properties/name/type.* at #/name") as raised:
        model.chat([Message("user", "?")], json_schema=SCHEMA).text()
    assert raised.value.partial is not None
    assert raised.value.partial.text == '{"name": 5}'
    with pytest.raises(ValueError, match="not a valid JSON Schema"):
        model.chat([Message("user", "?")], json_schema={"type": "object", "required": "name"})


# ---------------------------------------------------------------- endings


async def test_an_error_of_a_provider_is_typed_and_has_the_partial_result() -> None:
    model = LangChainTextModel(Provider(said=[text("The "), RuntimeError("rate limit")]))
    with pytest.raises(GenerationError, match="RuntimeError: rate limit") as caught:
        model.chat([Message("user", "?")]).text()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "The "
    with pytest.raises(GenerationError, match="RuntimeError: rate limit"):
        await model.achat([Message("user", "?")]).text()


class RefusedError(Exception):
    """As a provider's package raises it."""

    status_code = 429


class TooLongError(ContextOverflowError):
    pass


@pytest.mark.parametrize(
    ("raised", "error", "has"),
    [
        (RefusedError("slow down"), ServerError, {"status": 429}),
        (
            TooLongError("maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."),
            ContextLengthExceededError,
            {"prompt_tokens": 9000, "context_length": 8192},
        ),
        (
            TooLongError("prompt is too long: 210,000 tokens > 200,000 maximum"),
            ContextLengthExceededError,
            {"prompt_tokens": 210000, "context_length": 200000},
        ),
        (TooLongError("too long"), GenerationError, {}),
    ],
)
async def test_an_error_has_the_details_of_the_provider(
    raised: Exception, error: type[GenerationError], has: Any
) -> None:
    model = LangChainTextModel(Provider(said=[raised]))
    with pytest.raises(error) as caught:
        model.chat([Message("user", "?")]).text()
    assert type(caught.value) is error
    assert {name: getattr(caught.value, name) for name in has} == has
    with pytest.raises(error):
        await model.achat([Message("user", "?")]).text()


async def test_a_timeout_does_not_wait_for_the_provider() -> None:
    never = threading.Event()
    model = LangChainTextModel(Provider(said=[text("The "), never]))
    try:
        with pytest.raises(GenerationTimeoutError):
            model.chat([Message("user", "?")], timeout=0.1).text()
        with pytest.raises(GenerationTimeoutError):
            await model.achat([Message("user", "?")], timeout=0.1).text()
    finally:
        never.set()


def test_close_ends_a_stream_whose_provider_is_silent() -> None:
    never = threading.Event()
    stream = LangChainTextModel(Provider(said=[text("The "), never])).chat([Message("user", "?")])
    assert next(stream).text == "The "
    threading.Timer(0.1, stream.close).start()
    assert list(stream) == []
    assert stream.finish_reason == "cancelled"
    never.set()


async def test_cancelling_a_task_ends_the_providers_stream() -> None:
    never = threading.Event()
    provider = Provider(said=[text("The "), never])
    stream = LangChainTextModel(provider).achat([Message("user", "?")])
    task = asyncio.create_task(stream.text())
    await provider._waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert provider._closed == ["async"]
    assert stream.finish_reason == "cancelled"


async def test_leaving_a_stream_early_ends_the_providers() -> None:
    provider = Provider(said=[text("a"), text("b"), threading.Event()])
    async with LangChainTextModel(provider).achat([Message("user", "?")]) as stream:
        assert (await anext(stream)).text == "a"
    assert provider._closed == ["async"]


def test_a_closed_model_refuses_calls_and_does_not_change_the_chat_model() -> None:
    provider = Provider(said=ANSWER)
    with LangChainTextModel(provider) as model:
        pass
    with pytest.raises(ModelClosedError):
        model.chat([Message("user", "?")])
    assert provider.invoke("?").content == "The answer"


# ---------------------------------------------------------------- there and back


async def test_a_chat_model_through_both_directions() -> None:
    provider = Provider(said=[*ANSWER[:3], call('{"city": "Paris"}', 0, id="a", name="weather"), ANSWER[3]])
    chat = ChatInferenceBridge(text_model=LangChainTextModel(provider))
    for message in (chat.invoke("?"), await chat.ainvoke("?")):
        assert message.text == "The answer"
        assert message.content_blocks[0] == {"type": "reasoning", "reasoning": "hm"}
        assert message.tool_calls == [{"name": "weather", "args": {"city": "Paris"}, "id": "a", "type": "tool_call"}]
        assert message.usage_metadata is not None
        assert message.usage_metadata["total_tokens"] == 12


def test_cache_keys_of_a_wrapped_chat_model_depend_on_the_temperature() -> None:
    from langchain_core.caches import InMemoryCache

    class Echoing(LangChainTextModel):
        pass

    inner = ChatInferenceBridge(text_model=LangChainTextModel(Provider(said=ANSWER)), cache=InMemoryCache())
    inner._serialized  # noqa: B018 - as a trace leaves it behind
    model = Echoing(inner)
    warm = model._configured(_request(GenerateConfig(temperature=0.5)))
    assert warm._get_llm_string() != inner._get_llm_string()


def _request(config: GenerateConfig) -> Any:
    from inference_bridge import Request

    return Request("generate", config, prompt="?")


def test_iterating_is_lazy() -> None:
    provider = Provider(said=ANSWER)
    tokens: Iterator[Token] = iter(LangChainTextModel(provider).chat([Message("user", "?")]))
    assert provider.asked == []
    next(tokens)
    assert len(provider.asked) == 1
