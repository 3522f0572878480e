# SPDX-License-Identifier: Apache-2.0
"""LangChain, pydantic-ai and LiteLLM use the server through OpenAI's and Anthropic's APIs.

The requests and the small model are real. The small model never calls a tool by its own choice: tests of that use a
model that follows a script. `tests/serve/clients/standard_suites.py` runs LangChain's whole suites.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, Field

import inference_bridge as ib

from ...parts.models.tiny import Tiny
from ..conftest import running

QUESTION = "What is 2 plus 2?"
ANSWER_TOKENS = 16
ONE_REQUEST = {"connection": "close"}
"""Headers. Frameworks keep the connections of a client that was never closed, and share them between event loops."""


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


class Report(BaseModel):
    """The weather of a city."""

    city: str
    weather: str


class Agent(Tiny):
    """Asks for the weather, and when it has a result, reports it: by the tool `final_result` where there is one."""

    capabilities = frozenset({"chat", "tools"})
    options = frozenset({"temperature"})

    def _run(self, request: ib.Request) -> Iterator[ib.Token]:
        tools = {tool.name if isinstance(tool, ib.Tool) else "" for tool in request.config.tools or ()}
        results = [message.text for message in request.messages or () if message.role == "tool"]
        if not results:
            yield _called("weather", '{"city": "Paris"}')
        elif "final_result" in tools:
            yield _called("final_result", f'{{"city": "Paris", "weather": "{results[-1]}"}}')
        else:
            yield ib.Token("The weather in Paris: ")
            yield ib.Token(results[-1])


def _called(name: str, arguments: str) -> ib.Token:
    return ib.Token("", kind="tool_call", tool_call=ib.ToolCallDelta(0, f"call_{name}", name, arguments))


def weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: its name.
    """
    return f"Sunny in {city}"


@pytest.fixture(scope="module")
def address(model: ib.TextModel) -> Iterator[str]:
    with running({"small": model, "agent": Agent()}) as at:
        yield at


@pytest.fixture(scope="module")
def expected(model: ib.TextModel) -> str:
    """The greedy answer in this process."""
    return model.chat([ib.Message("user", QUESTION)], temperature=0.0, max_tokens=ANSWER_TOKENS).text()


# ---------------------------------------------------------------- LangChain


@pytest.fixture(params=["ChatOpenAI", "ChatOpenAI, responses", "ChatAnthropic"])
def connect(request: pytest.FixtureRequest, address: str) -> Any:
    """Makes LangChain's chat model of each API, with a model's name."""
    shared: dict[str, Any] = {"api_key": "none", "max_retries": 0, "max_tokens": 64, "default_headers": ONE_REQUEST}
    if request.param == "ChatAnthropic":
        module = pytest.importorskip("langchain_anthropic", reason="langchain-anthropic is not installed")
        shared |= {"base_url": address, "model_kwargs": {"extra_body": {"temperature": 0}}}
        return lambda name: module.ChatAnthropic(model=name, **shared)
    module = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    shared |= {"base_url": f"{address}/v1", "temperature": 0, "use_responses_api": request.param != "ChatOpenAI"}
    return lambda name: module.ChatOpenAI(model=name, **shared)


@pytest.fixture
def chat(connect: Any) -> Any:
    return connect("small")


def test_langchain_answers_and_streams_as_in_process(chat: Any, expected: str) -> None:
    answer = chat.invoke(QUESTION, max_tokens=ANSWER_TOKENS)
    assert answer.text == expected
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.text for chunk in chat.stream(QUESTION, max_tokens=ANSWER_TOKENS)) == expected


async def test_langchain_streams_asynchronously(chat: Any, expected: str) -> None:
    assert "".join([chunk.text async for chunk in chat.astream(QUESTION, max_tokens=ANSWER_TOKENS)]) == expected


def test_langchain_forces_a_tool(chat: Any) -> None:
    bound = chat.bind_tools([Person], tool_choice="Person")
    (call,) = bound.invoke("Ada is 36 years old.").tool_calls
    assert call["name"] == "Person"
    Person.model_validate(call["args"])


def test_langchain_gives_structured_output(chat: Any) -> None:
    structured = chat.with_structured_output(Person, method="json_schema")
    assert isinstance(structured.invoke("Ada is 36 years old."), Person)


def test_langchain_answers_with_a_tools_result(connect: Any) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    agent = connect("agent").bind_tools([weather])
    asked: list[Any] = [HumanMessage("The weather in Paris?")]
    first = agent.invoke(asked)
    (call,) = first.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Paris"})
    result = ToolMessage(weather(**call["args"]), tool_call_id=call["id"])
    assert agent.invoke([*asked, first, result]).text == "The weather in Paris: Sunny in Paris"


# ---------------------------------------------------------------- pydantic-ai


@pytest.fixture(params=["chat completions", "responses"])
def typed_agent(request: pytest.FixtureRequest, address: str) -> Any:
    """Makes an agent of pydantic-ai over each of OpenAI's APIs."""
    ai = pytest.importorskip("pydantic_ai", reason="pydantic-ai-slim is not installed")
    from openai import AsyncOpenAI
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    kind = OpenAIChatModel if request.param == "chat completions" else OpenAIResponsesModel
    client = AsyncOpenAI(base_url=f"{address}/v1", api_key="none", default_headers=ONE_REQUEST)
    provider = OpenAIProvider(openai_client=client)

    def make(name: str, **options: Any) -> Any:
        settings = {"temperature": 0.0, "max_tokens": 64}
        return ai.Agent(kind(name, provider=provider), model_settings=settings, **options)

    return make


async def test_pydantic_ai_answers_and_streams_as_in_process(typed_agent: Any, expected: str) -> None:
    agent = typed_agent("small")
    settings = {"max_tokens": ANSWER_TOKENS}
    answer = await agent.run(QUESTION, model_settings=settings)
    assert answer.output == expected
    assert answer.usage.output_tokens > 0
    async with agent.run_stream(QUESTION, model_settings=settings) as stream:
        assert "".join([piece async for piece in stream.stream_text(delta=True)]) == expected


async def test_pydantic_ai_gives_an_output_type(typed_agent: Any) -> None:
    from pydantic_ai import NativeOutput, ToolOutput

    for way in (ToolOutput, NativeOutput):
        answer = await typed_agent("small", output_type=way(Person)).run("Ada is 36 years old.")
        assert isinstance(answer.output, Person)


async def test_pydantic_ai_runs_tools_before_it_returns_an_output_type(typed_agent: Any) -> None:
    agent = typed_agent("agent", output_type=Report, tools=[weather])
    answer = await agent.run("The weather in Paris?")
    assert answer.output == Report(city="Paris", weather="Sunny in Paris")
    assert answer.usage.tool_calls == 1
    async with agent.run_stream("The weather in Paris?") as stream:
        assert await stream.get_output() == answer.output


# ---------------------------------------------------------------- LiteLLM

of_litellm = pytest.mark.filterwarnings("ignore")  # it emits warnings at its import and about connections that it keeps


@pytest.fixture(scope="module")
def litellm() -> Iterator[Any]:
    """The module, which reads no list of prices from the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        module = pytest.importorskip("litellm", reason="litellm is not installed")
        patch.setattr(module, "disable_aiohttp_transport", True)  # its sessions would stay open
        yield module


@pytest.fixture(params=["openai", "anthropic"])
def asked(request: pytest.FixtureRequest, address: str) -> dict[str, Any]:
    """The arguments of a request by each API."""
    base = f"{address}/v1" if request.param == "openai" else address
    return {
        "model": f"{request.param}/small",
        "api_base": base,
        "api_key": "none",
        "extra_headers": ONE_REQUEST,
        "temperature": 0,
        "max_tokens": ANSWER_TOKENS,
        "messages": [{"role": "user", "content": QUESTION}],
    }


@of_litellm
async def test_litellm_completes_and_streams(litellm: Any, asked: dict[str, Any], expected: str) -> None:
    answer = litellm.completion(**asked)
    assert answer.choices[0].message.content == expected
    assert answer.usage.completion_tokens > 0
    pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True)]
    assert "".join(pieces) == expected
    assert (await litellm.acompletion(**asked)).choices[0].message.content == expected
    stream = await litellm.acompletion(**asked, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == expected


@of_litellm
def test_litellm_forces_a_tool(litellm: Any, asked: dict[str, Any]) -> None:
    schema = Person.model_json_schema()
    tool = {"type": "function", "function": {"name": "person", "description": "A person", "parameters": schema}}
    forced = {"type": "function", "function": {"name": "person"}}
    answer = litellm.completion(**asked | {"max_tokens": 64}, tools=[tool], tool_choice=forced)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "person"
    Person.model_validate_json(call.function.arguments)


@of_litellm
def test_litellm_gives_structured_output(litellm: Any, asked: dict[str, Any]) -> None:
    answer = litellm.completion(**asked | {"max_tokens": 64}, response_format=Person)
    Person.model_validate_json(answer.choices[0].message.content)
