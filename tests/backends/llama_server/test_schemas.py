# SPDX-License-Identifier: Apache-2.0
"""Schemas on managed servers: they hold, are refused before any work, or the answer is an error."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import inference_bridge as ib
from inference_bridge import LoadConfig, Tool
from inference_bridge.backends.llama_server.backend import LlamaServerBackend
from inference_bridge.backends.llama_server.model import ServerModel
from inference_bridge.backends.llama_server.schemas import ServerSchemas

from ...parts.models.tiny_gguf import write_with_vocabulary
from ...parts.schemas.real import SCHEMAS
from ...parts.servers.managed import REAL, script, short_directory

SETTINGS = LoadConfig(context_length=512, parallel_slots=1, threads=1)
ASKED = [{"role": "user", "content": "Write a line about rain."}]


def one(**value: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": value}, "required": ["a"]}


LINK = one(type="string", format="uri", minLength=1, maxLength=40)  # pydantic's HttpUrl, shorter
UNENFORCEABLE = {
    "format": one(type="string", format="regex"),
    "pattern": one(type="string", pattern=r"^(a)\1$"),
    "oneOf": one(oneOf=[{"type": "integer", "maximum": 5}, {"type": "integer", "minimum": 3, "maximum": 9}]),
}


@contextmanager
def loaded(server: str, file: Path, directory: Path) -> Iterator[ServerModel]:
    with short_directory() as runtime, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        binary = script(directory / "llama-server", REAL) if server == "binary" else None
        with LlamaServerBackend(binary).load_model(str(file), SETTINGS) as model:
            assert isinstance(model, ServerModel)
            model.generate("abc", max_tokens=1).text()
            yield model


@pytest.fixture(scope="module", params=["wheel", "binary"])
def model(
    request: pytest.FixtureRequest, demo_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerModel]:
    """The wheel's server, and the same server as an unknown binary; "tiny" is the wheel's with random weights."""
    directory, file = tmp_path_factory.mktemp("server"), demo_model_path
    if request.param == "tiny":
        file = write_with_vocabulary(directory / "tiny.gguf", demo_model_path)
    with loaded(request.param, file, directory) as model:
        yield model


@pytest.mark.parametrize("keyword", UNENFORCEABLE)
def test_schema_that_can_not_be_enforced_is_refused_at_the_call(keyword: str, model: ServerModel) -> None:
    schema = UNENFORCEABLE[keyword]
    with pytest.raises(ib.UnsupportedError, match=keyword):
        model.chat(ASKED, json_schema=schema)
    with pytest.raises(ib.UnsupportedError, match=keyword):
        model.agenerate("abc", json_schema=schema)
    with pytest.raises(ib.UnsupportedError, match=keyword):
        model.chat(ASKED, tools=[Tool("write", "", schema)], tool_choice="required")
    model.chat(ASKED, tools=[Tool("write", "", schema)])  # a call that is not forced needs no grammar


@pytest.mark.parametrize("name", ["person", "address", "event", "issue"])
@pytest.mark.parametrize("model", ["tiny", "binary"], indirect=True)
async def test_answer_is_compact_json_of_the_schema(name: str, model: ServerModel) -> None:
    text, schema = SCHEMAS[name]
    turns = [{"role": "user", "content": text}]
    answers = [model.chat(turns, json_schema=schema).text(), await model.agenerate(text, json_schema=schema).text()]
    for answer in answers:
        jsonschema.validate(json.loads(answer), schema)
        assert answer == json.dumps(json.loads(answer), separators=(",", ":"), ensure_ascii=False)
    call = model.chat(turns, tools=[Tool("write", "", schema)], tool_choice="write").result().tool_calls[0]
    jsonschema.validate(call.arguments, schema)


def test_format_that_the_wheels_server_does_not_know_is_enforced(model: ServerModel) -> None:
    """On a binary the answer is an error, since the server drops the schema: see below."""
    if model.process.plan.program == LlamaServerBackend().wheel():
        assert ":" in json.loads(model.chat(ASKED, json_schema=LINK, max_tokens=60).text())["a"]
        return
    with pytest.raises(ib.GenerationError, match="json_schema"):
        model.chat(ASKED, json_schema=LINK, schema_in_prompt=False, max_tokens=60).text()


@pytest.fixture
def dropping(model: ServerModel, monkeypatch: pytest.MonkeyPatch) -> ServerModel:
    """A server that cannot compile the schema: its llguidance is older than the one that checked the schema."""
    unknown = {"type": "string", "x-guidance": {"no_such_option": 1}}
    monkeypatch.setattr(ServerSchemas, "sent", lambda self, schema, **_: unknown)
    return model


async def test_schema_that_the_server_drops_is_an_error_with_the_text(dropping: ServerModel) -> None:
    with pytest.raises(ib.GenerationError, match="json_schema") as caught:
        dropping.chat(ASKED, json_schema=one(type="integer")).text()
    assert caught.value.partial is not None
    assert len(caught.value.partial.text) > 10
    with pytest.raises(ib.GenerationError, match="json_schema") as caught:
        await dropping.achat(ASKED, json_schema=one(type="integer")).text()
    assert caught.value.partial is not None
    assert len(caught.value.partial.text) > 10


async def test_schema_that_the_server_drops_is_an_error_in_an_answer_that_was_cut_off(dropping: ServerModel) -> None:
    cut: dict[str, Any] = {"json_schema": one(type="integer"), "schema_in_prompt": False, "max_tokens": 5}
    with pytest.raises(ib.GenerationError, match="json_schema") as caught:
        dropping.chat(ASKED, **cut).text()
    assert caught.value.partial is not None
    assert caught.value.partial.text
    with pytest.raises(ib.GenerationError, match="json_schema"):
        await dropping.achat(ASKED, **cut).text()


def test_forced_call_that_the_server_drops_is_an_error(dropping: ServerModel) -> None:
    with pytest.raises(ib.GenerationError, match="tool_choice") as caught:
        dropping.chat(ASKED, tools=[Tool("write", "", one(type="integer"))], tool_choice="required").text()
    assert caught.value.partial is not None


@pytest.mark.parametrize("length", [1, 3, 9, 15, 40])
async def test_forced_call_that_max_tokens_cuts_is_an_error_without_markup(length: int, model: ServerModel) -> None:
    parameters = one(type="string", minLength=200, maxLength=200)
    options: dict[str, Any] = {"tools": [Tool("write", "", parameters)], "tool_choice": "write", "max_tokens": length}
    with pytest.raises(ib.GenerationError, match="raise max_tokens") as caught:
        model.chat(ASKED, **options).result()
    assert caught.value.partial is None or caught.value.partial.text == ""
    with pytest.raises(ib.GenerationError, match="raise max_tokens") as caught:
        await model.achat(ASKED, **options).result()
    assert caught.value.partial is None or caught.value.partial.text == ""


def test_forced_call_of_which_max_tokens_cuts_only_the_end_token_is_whole(model: ServerModel) -> None:
    options: dict[str, Any] = {"tools": [Tool("write", "", one(const="rain"))], "tool_choice": "write"}
    tokens = model.chat(ASKED, **options).result().metrics.generated_tokens
    stream = model.chat(ASKED, **options, max_tokens=tokens - 1)
    assert [call.arguments for call in stream.result().tool_calls] == [{"a": "rain"}]
    assert stream.finish_reason == "tool_calls"


async def test_answer_is_checked_whole_where_its_reader_is_slow(model: ServerModel) -> None:
    stream = model.achat(ASKED, json_schema=one(const="a text of more than a token"), max_tokens=60)
    text = (await anext(stream)).text
    await asyncio.sleep(1)  # the server has ended by then, and its tokens wait
    async for token in stream:
        text += token.text
    assert json.loads(text) == {"a": "a text of more than a token"}


def test_forced_call_is_spaced_as_chat_templates_write_it(model: ServerModel) -> None:
    """The small model knows its numbers after a space alone: in compact JSON it writes 1."""
    asked = [{"role": "user", "content": "What is the value of magic_function(3)? Use the tool."}]
    parameters = {"type": "object", "properties": {"input": {"type": "integer"}}, "required": ["input"]}
    tool = Tool("magic_function", "Apply a magic function to an input.", parameters)
    (call,) = model.chat(asked, tools=[tool], tool_choice="required", max_tokens=60).result().tool_calls
    assert call.arguments == {"input": 3}


def test_answer_that_was_cut_off_is_not_an_error(model: ServerModel) -> None:
    stream = model.chat(ASKED, json_schema=one(type="string"), max_tokens=3)
    stream.text()
    assert stream.finish_reason == "length"
    closed = model.chat(ASKED, json_schema=one(type="string"))
    next(closed)
    closed.close()
    assert closed.finish_reason == "cancelled"


def test_numpy_is_imported_where_ctrl_c_can_not_interrupt_it() -> None:
    """An import that was interrupted in the main thread leaves half a numpy behind, for the rest of the program."""
    code = """
import sys, threading
from inference_bridge.backends.llama_server import schemas
importing = []
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            importing.append(threading.current_thread() is threading.main_thread())
sys.meta_path.insert(0, Finder())
assert "numpy" not in sys.modules
request = schemas.Request("chat", schemas.GenerateConfig(json_schema={"type": "integer"}, max_tokens=9))
schemas.ServerSchemas("llama_server", True).completion(request, len)
assert "numpy" in sys.modules
assert importing == [False], importing
"""
    subprocess.run([sys.executable, "-c", code], check=True)
