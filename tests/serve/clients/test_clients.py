# SPDX-License-Identifier: Apache-2.0
"""OpenAI's SDK on the real small model: its answers equal those of the model in this process."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import inference_bridge as ib

from ...parts.models.contract_models import DEMO_MODEL
from ...parts.models.tiny_gguf import write_embedding
from ..conftest import running

openai = pytest.importorskip("openai", reason="the OpenAI SDK is not installed")

QUESTION: list[Any] = [{"role": "user", "content": "What is 2 plus 2?"}]
TOO_LONG = [{"role": "user", "content": "word " * 2000}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(scope="module")
def address(model: ib.TextModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    vectors = write_embedding(tmp_path_factory.mktemp("model") / "bert.gguf")
    with (
        ib.load_model(vectors, backend="llama_cpp") as embedding,
        running({"small": model, "vectors": embedding}) as at,
    ):
        yield at


@pytest.fixture
def client(address: str) -> Any:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat_answers_as_in_process(client: Any, model: ib.TextModel) -> None:
    answer = client.chat.completions.create(model="small", messages=QUESTION, temperature=0, max_tokens=16)
    here = model.chat(QUESTION, temperature=0.0, max_tokens=16).result()
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (here.text, here.finish_reason)
    assert answer.usage.prompt_tokens == here.metrics.prompt_tokens
    assert answer.usage.completion_tokens == here.metrics.generated_tokens


def test_chat_streams_the_same_text(client: Any, model: ib.TextModel) -> None:
    chunks = list(
        client.chat.completions.create(
            model="small",
            messages=QUESTION,
            temperature=0,
            max_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == model.chat(QUESTION, temperature=0.0, max_tokens=16).text()
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


async def test_async_clients_share_a_batch(address: str) -> None:
    import asyncio

    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:

        async def ask() -> str:
            parts = []
            stream = await client.chat.completions.create(
                model="small", messages=QUESTION, temperature=0, max_tokens=16, stream=True
            )
            async for chunk in stream:
                parts.append(chunk.choices[0].delta.content or "")
            return "".join(parts)

        assert len(set(await asyncio.gather(*(ask() for _ in range(6))))) == 1


def test_a_forced_tool_is_called(client: Any) -> None:
    ask = {"model": "small", "messages": [{"role": "user", "content": "The weather in Paris?"}], "temperature": 0}
    answer = client.chat.completions.create(**ask, tools=[WEATHER], tool_choice="required", max_tokens=64)
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, answer.choices[0].finish_reason) == ("weather", "tool_calls")
    with client.chat.completions.stream(**ask, tools=[WEATHER], tool_choice="required", max_tokens=64) as stream:
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed.function.arguments == call.function.arguments


def test_parse_gives_an_object_of_the_schema(client: Any) -> None:
    answer = client.chat.completions.parse(
        model="small",
        messages=[{"role": "user", "content": "Ada is 36."}],
        response_format=Person,
        temperature=0.8,
        seed=1,
        max_tokens=100,
        extra_body={"repeat_penalty": 1.2},
    )
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_logprobs(client: Any) -> None:
    answer = client.chat.completions.create(
        model="small", messages=QUESTION, temperature=0, max_tokens=3, logprobs=True, top_logprobs=2
    )
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)


def test_choices_repeat_with_a_seed(client: Any) -> None:
    def ask() -> list[str]:
        answer = client.chat.completions.create(
            model="small", messages=QUESTION, temperature=1.5, seed=3, n=3, max_tokens=12
        )
        return [choice.message.content for choice in answer.choices]

    first = ask()
    assert len(set(first)) > 1
    assert ask() == first


def test_completions_of_several_prompts(client: Any, model: ib.TextModel) -> None:
    prompts = ["The capital of France is", "One, two, three,"]
    answer = client.completions.create(model="small", prompt=prompts, temperature=0, max_tokens=6)
    here = [model.generate(prompt, temperature=0.0, max_tokens=6).text() for prompt in prompts]
    assert [choice.text for choice in answer.choices] == here
    streamed = ["", ""]
    for chunk in client.completions.create(model="small", prompt=prompts, temperature=0, max_tokens=6, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == here


def test_embeddings_are_those_of_the_model(client: Any) -> None:
    both = client.embeddings.create(model="vectors", input=["a cat", "a dog"])  # the SDK asks for base64
    floats = client.embeddings.create(model="vectors", input=["a cat", "a dog"], encoding_format="float")
    for packed, plain in zip(both.data, floats.data, strict=True):
        assert packed.embedding == pytest.approx(plain.embedding, abs=1e-6)
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="small", input="a cat")


def test_errors_are_the_sdks_own(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="small"):
        client.chat.completions.create(model="smal", messages=QUESTION)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="small", messages=TOO_LONG)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "word " * 2000}], stream=True
        )
    assert caught.value.code == "context_length_exceeded"


def test_the_command_serves_with_a_key_until_it_is_interrupted(tmp_path: Path, demo_model_path: Path) -> None:
    command = [sys.executable, "-m", "inference_bridge.cli", "serve", DEMO_MODEL, "--alias", f"mine={DEMO_MODEL}"]
    process = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True, env=os.environ.copy())
    assert process.stderr is not None
    try:
        lines = [process.stderr.readline() for _ in range(4)]
        url = re.search(r"http://127\.0\.0\.1:\d+/v1", lines[0])
        key_file = Path(lines[2].removeprefix("API key: in ").strip())
        assert url is not None, lines
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        with openai.OpenAI(base_url=url[0], api_key=key_file.read_text().strip(), max_retries=5) as client:
            assert {model.id for model in client.models.list()} == {DEMO_MODEL, "mine"}
            answer = client.chat.completions.create(model="mine", messages=QUESTION, temperature=0, max_tokens=3)
            assert answer.choices[0].message.content
        stranger = openai.OpenAI(base_url=url[0], api_key="wrong", max_retries=0)
        with stranger, pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
        rest = process.stderr.read()
        assert "Traceback" not in rest
        assert key_file.read_text().strip() not in "".join(lines) + rest
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(
    "arguments",
    [["--host", "0.0.0.0", "--no-key"], ["--alias", "nothing"], ["--port", "99999"]],  # noqa: S104
)
def test_the_command_refuses_unsafe_or_wrong_options(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "inference_bridge.cli", "serve", DEMO_MODEL, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "Usage" in done.stderr
