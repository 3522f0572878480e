# SPDX-License-Identifier: Apache-2.0
"""Constrained decoding on the real small model: every answer satisfies its constraint."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from inference_bridge import LoadConfig, Message, ModelClosedError, TextModel, Tool, UnsupportedError
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
from inference_bridge.backends.llama_cpp.tokenizer import NativeTokenizer

from ...parts.schemas.real import SCHEMAS

QUICK = ("person", "invoice", "tree", "shape", "product", "call", "chess", "unicode")
PERSON = SCHEMAS["person"][1]

TOOLS = (
    Tool(
        "magic_function",
        "Applies a magic function to an input.",
        {"type": "object", "properties": {"input": {"type": "integer"}}, "required": ["input"]},
    ),
    Tool(
        "get_weather",
        "The weather in a city",
        {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]},
    ),
)


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Iterator[TextModel]:
    with LlamaCppBackend().load_model(str(demo_model_path), LoadConfig(context_length=1024)) as loaded:
        yield loaded


def test_a_model_without_an_end_token(demo_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tokenizers have no token for it; the grammar itself says when the text is complete."""
    monkeypatch.setattr(NativeTokenizer, "is_end", lambda self, token: False)
    with LlamaCppBackend().load_model(str(demo_model_path), LoadConfig(context_length=512)) as endless:
        stream = endless.generate("The answer is", json_schema={"enum": ["yes", "no"]}, max_tokens=30)
        assert stream.text() in ('"yes"', '"no"')
        assert stream.finish_reason == "stop"


def ask(content: str) -> list[Message]:
    return [Message("user", content)]


def check(model: TextModel, name: str, seed: int) -> bool:
    """Whether the answer is complete. Asserts that a complete answer satisfies the schema."""
    prompt, schema = SCHEMAS[name]
    options: dict[str, Any] = {"json_schema": schema, "temperature": 1, "seed": seed, "max_tokens": 300}
    stream = model.chat(ask(f"{prompt} Answer in JSON."), **options) if seed % 2 else model.generate(prompt, **options)
    text = stream.text()
    if stream.finish_reason != "stop":
        assert stream.finish_reason == "length"
        return False
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    validator(schema, format_checker=validator.FORMAT_CHECKER).validate(json.loads(text))
    assert text == text.strip(), "JSON and nothing else"
    return True


def check_all(model: TextModel, work: list[tuple[str, int]]) -> float:
    """The share of complete answers, of several that run concurrently."""
    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(lambda one: check(model, *one), work))
    return sum(ended) / len(ended)


def test_schemas_hold_at_temperature_1(model: TextModel) -> None:
    assert check_all(model, [(name, seed) for seed, name in enumerate(QUICK)]) > 0.8


@pytest.mark.slow
def test_dozens_of_schemas_hold_at_temperature_1(model: TextModel) -> None:
    assert len(SCHEMAS) > 36
    assert check_all(model, [(name, seed) for seed, name in enumerate(SCHEMAS, start=100)]) > 0.9


# ---------------------------------------------------------------- JSON


def test_greedy_json_ends_with_the_last_brace(model: TextModel) -> None:
    assert "json_schema" in model.capabilities
    stream = model.generate("Ada Lovelace was born in London in 1815. As JSON: ", json_schema=PERSON)
    tokens = list(stream)
    text = "".join(token.text for token in tokens)
    assert json.loads(text)["name"]
    assert text[-1] == "}"
    assert stream.finish_reason == "stop"
    assert stream.metrics.generated_tokens == len(tokens), "no step for an end that is certain"


def test_log_probabilities_are_those_of_the_model(model: TextModel) -> None:
    plain = next(iter(model.generate("The capital of France is", max_tokens=1, logprobs=2)))
    forced = list(model.generate("The capital of France is", json_schema={"const": "x"}, logprobs=2))
    assert forced[0].top_logprobs == plain.top_logprobs
    assert forced[0].logprob is not None
    assert plain.logprob is not None
    assert forced[0].logprob < plain.logprob


def test_a_limit_cuts_json_short(model: TextModel) -> None:
    stream = model.generate("Names: ", json_schema={"type": "string", "minLength": 100}, max_tokens=5)
    assert stream.text().startswith('"')
    assert stream.finish_reason == "length"


def test_concurrent_sequences_keep_their_own_grammars(model: TextModel) -> None:
    wanted = [{"const": f"answer {n}"} for n in range(12)]
    with ThreadPoolExecutor(12) as pool:
        texts = list(pool.map(lambda schema: model.generate("Say: ", json_schema=schema).text(), wanted))
    free = model.generate("One, two, three,", max_tokens=3)
    assert [json.loads(text) for text in texts] == [schema["const"] for schema in wanted]
    assert free.text() == " four, five"


def test_batches(model: TextModel) -> None:
    results = model.batch_generate(["Yes or no: ", "No or yes: "], json_schema={"enum": ["yes", "no"]})
    assert all(json.loads(result.text) in ("yes", "no") for result in results)


async def test_async(model: TextModel, demo_model_path: Path) -> None:
    with LlamaCppBackend().load_model(str(demo_model_path), LoadConfig(context_length=256)) as fresh:
        texts = await asyncio.gather(
            *(fresh.agenerate("Name: ", json_schema={"const": n}).text() for n in ("a", "b", "c"))
        )
    assert texts == ['"a"', '"b"', '"c"']


def test_errors_come_at_the_call(model: TextModel) -> None:
    with pytest.raises(UnsupportedError, match="llama_cpp does not support the JSON Schema keyword 'not': at #"):
        model.generate("x", json_schema={"not": {}})
    with pytest.raises(ValueError, match="unknown keyword 'minLenght'"):
        model.chat(ask("x"), json_schema={"minLenght": 1})
    with pytest.raises(UnsupportedError, match="'not': at #"):
        model.batch_generate(["x"], json_schema={"not": {}})
    odd = Tool("odd", parameters={"type": "object", "properties": {"a": {"uniqueItems": True}}})
    with pytest.raises(UnsupportedError, match="'uniqueItems': at #/properties/a of parameters of tool 'odd'"):
        model.chat(ask("x"), tools=[odd], tool_choice="required")
    model.chat(ask("x"), tools=[odd]).close()


def test_a_grammar_without_a_next_token_ends_only_its_request(model: TextModel) -> None:
    from inference_bridge import GenerationError

    nowhere = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^\\x01$"}}, "required": ["a"]}
    with ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(lambda: model.generate("One, two,", max_tokens=40).text())
        with pytest.raises(GenerationError, match="can't be followed any further") as caught:
            model.generate("x", json_schema=nowhere).text()
        assert neighbour.result()
    assert caught.value.partial is not None
    assert caught.value.partial.text == '{"a":'


def test_closing_while_grammars_are_made(demo_model_path: Path) -> None:
    model = LlamaCppBackend().load_model(str(demo_model_path), LoadConfig(context_length=256))
    begun = threading.Barrier(5)
    closed: list[int] = []

    def one(n: int) -> None:
        begun.wait()
        try:
            while True:
                model.generate("x", json_schema={"const": n}).text()
        except ModelClosedError:
            closed.append(n)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    begun.wait()
    model.close()
    for thread in threads:
        thread.join()
    assert sorted(closed) == [0, 1, 2, 3]


# ---------------------------------------------------------------- tools


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_tool_is_called_where_it_must_be(model: TextModel, temperature: float) -> None:
    for choice, names in (("required", {"magic_function", "get_weather"}), ("get_weather", {"get_weather"})):
        stream = model.chat(ask("Hello!"), tools=TOOLS, tool_choice=choice, temperature=temperature, seed=1)
        result = stream.result()
        assert result.text == ""
        assert result.tool_calls
        for call in result.tool_calls:
            assert call.name in names
            schema = next(tool.parameters for tool in TOOLS if tool.name == call.name)
            jsonschema.validate(call.arguments, schema)
        assert stream.finish_reason == "tool_calls"


def test_the_small_model_calls_the_right_tool(model: TextModel) -> None:
    question = ask("What is the value of magic_function(3)? Use the tool.")
    (call,) = model.chat(question, tools=TOOLS, tool_choice="required").result().tool_calls
    assert (call.name, call.arguments) == ("magic_function", {"input": 3})


def test_a_forced_call_streams(model: TextModel) -> None:
    tokens = list(model.chat(ask("Weather in Oslo?"), tools=TOOLS, tool_choice="get_weather"))
    deltas = [token.tool_call for token in tokens if token.tool_call is not None]
    assert deltas[0].name == "get_weather"
    assert len([delta for delta in deltas if delta.arguments]) > 2
    assert all(token.text == "" for token in tokens)


def test_a_schema_or_a_call(model: TextModel) -> None:
    result = model.chat(ask("What is the weather in Tokyo?"), tools=TOOLS, json_schema=PERSON).result()
    assert bool(result.tool_calls) != bool(result.text)
    result = model.chat(ask("Who?"), tools=TOOLS, tool_choice="none", json_schema=PERSON).result()
    jsonschema.validate(json.loads(result.text), PERSON)


# ---------------------------------------------------------------- within the limit


def test_an_answer_is_completed_within_max_tokens(model: TextModel) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "born": {"type": "integer"}},
        "required": ["name", "born"],
    }
    ended = {}
    for limit in (4, 9, 10, 11, 12, 13, 14, 20, 100):
        stream = model.generate("Ada Lovelace as JSON: ", json_schema=schema, max_tokens=limit, temperature=1, seed=1)
        text = stream.text()
        assert stream.metrics.generated_tokens <= limit
        ended[limit] = stream.finish_reason == "stop"
        if ended[limit]:
            jsonschema.validate(json.loads(text), schema)
        else:
            assert not stream.shortened
    assert sorted(ended.values()) == list(ended.values()), "what fits in fewer tokens fits in more"
    assert (ended[4], ended[20]) == (False, True)


@pytest.mark.slow
def test_schemas_close_within_256_tokens(model: TextModel, capsys: pytest.CaptureFixture[str]) -> None:
    ended = shortened = 0
    for prompt, schema in SCHEMAS.values():
        stream = model.chat(ask(f"{prompt} Answer in JSON."), json_schema=schema, max_tokens=256)
        text = stream.text()
        if stream.finish_reason == "stop":
            json.loads(text)
            ended += 1
        shortened += stream.shortened
    with capsys.disabled():
        sys.stdout.write(f"\n{ended} of {len(SCHEMAS)} closed within 256 tokens, {shortened} of them shortened\n")
    assert ended == len(SCHEMAS)


def test_a_forced_call_that_does_not_fit_is_an_error_without_markup(model: TextModel) -> None:
    from inference_bridge import ToolCallCutError

    options: dict[str, Any] = {"tools": TOOLS, "tool_choice": "get_weather"}
    for limit in (1, 5):
        with pytest.raises(ToolCallCutError, match="raise max_tokens") as caught:
            model.chat(ask("Rain in Oslo?"), max_tokens=limit, **options).result()
        assert caught.value.partial is None or caught.value.partial.text == ""
    result = model.chat(ask("Rain in Oslo?"), max_tokens=40, temperature=1, seed=3, **options).result()
    assert (result.text, len(result.tool_calls)) == ("", 1)


@pytest.mark.parametrize("seed", range(3))
def test_other_constraints_hold_at_temperature_1(model: TextModel, seed: int) -> None:
    import re

    options: dict[str, Any] = {"temperature": 1, "seed": seed, "max_tokens": 30}
    assert re.fullmatch("[a-c]{3}-[0-9]{2}", model.chat(ask("Hi"), regex="[a-c]{3}-[0-9]{2}", **options).text())
    assert model.generate("Is it?", choices=["yes", "no, never"], **options).text() in ("yes", "no, never")
    lark = 'start: "I like " ("cats" | "dogs") "!"'
    assert model.chat(ask("Hi"), grammar=lark, **options).text() in ("I like cats!", "I like dogs!")
    with pytest.raises(UnsupportedError, match="stop with regex"):
        model.generate("x", regex="a", stop="b")
