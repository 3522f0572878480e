# SPDX-License-Identifier: Apache-2.0
"""Prompts of llm: the conversation, the schema, refused options, and a full context window."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llm
import pydantic
import pytest

import inference_bridge as ib
from inference_bridge import LoadConfig, Request, TextModel, Token, ToolCallDelta

from ...parts.llm_plugin import Play, offered, text
from ...parts.models.gguf_files import write_model
from ...parts.models.tiny import Words, WordsBackend
from .test_names import collected

pytestmark = pytest.mark.usefixtures("no_models_in_llm")


class KindsBackend(WordsBackend):
    """Keeps the kinds of requests that its models got."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[str] = []

    def load_model(self, source: str, config: LoadConfig) -> TextModel:
        kinds = self.kinds

        class Kinds(Words):
            def _run(self, request: Request) -> Iterator[Token]:
                kinds.append(request.kind)
                return super()._run(request)

        return Kinds(source, config)


def test_a_model_without_a_chat_template_continues_a_text(models_directory: Path) -> None:
    write_model(models_directory / "base.gguf")
    ib.register(backend := KindsBackend())
    model, async_model = offered()["words:base"]
    assert (model.supports_conversation, model.supports_tools) == (False, False)
    assert model.prompt("The capital", max_tokens=3).text()
    assert asyncio.run(collected(async_model.prompt("The capital", max_tokens=3)))
    assert backend.kinds == ["generate", "generate"]
    with pytest.raises(llm.ModelError, match="can't be given a system prompt"):
        model.prompt("p", system="s").text()


def test_unsupported_prompts_are_refused_before_a_model_is_loaded(configure: Callable[[str], Path]) -> None:
    configure("[models.one]\nsource = 'words:x'")
    ib.register(backend := WordsBackend())
    model, _ = offered()["words:one"]
    for prompt, told in (("", "the prompt is empty"), ("caf\udce9", r"not UTF-8 text \(at character 4\)")):
        with pytest.raises(llm.ModelError, match=told):
            model.prompt(prompt).text()
    assert backend.loaded == []


def test_a_new_system_prompt_replaces_that_of_the_conversation(play: Play) -> None:
    model, scripted = play(text("a"), text("b"), text("c"))
    conversation = model.conversation()
    conversation.prompt("one", system="old").text()
    conversation.prompt("two", system="new").text()
    conversation.prompt("three").text()
    systems = [[m.text for m in asked if m.role == "system"] for asked in scripted.asked]
    assert systems == [["old"], ["new"], ["new"]]
    assert [message.role for message in scripted.asked[1]] == ["system", "user", "assistant", "user"]


def test_a_schema_holds_for_the_answer_after_a_tool(play: Play) -> None:
    call = Token("", kind="tool_call", tool_call=ToolCallDelta(0, "1", "look", "{}"))
    model, scripted = play([call], text('{"a": 1}'))
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    configs = []

    def look() -> str:
        """Look."""
        configs.append(scripted.config)
        return "seen"

    assert model.chain("p", tools=[look], schema=schema).text() == '{"a": 1}'
    assert [config.json_schema for config in (*configs, scripted.config)] == [schema, schema]


def test_disabling_reasoning_of_a_model_without_reasoning_is_accepted(play: Play) -> None:
    model, scripted = play(text("a"))
    scripted.capabilities = scripted.capabilities - {"reasoning"}
    assert model.prompt("p", reasoning=False).text() == "a"
    assert scripted.config.reasoning is None


def test_an_option_that_the_backend_does_not_support_is_refused_when_it_is_saved(
    configure: Callable[[str], Path],
) -> None:
    configure("[models.one]\nsource = 'words:x'")

    class Small(WordsBackend):
        load_options = frozenset({"context_length"})
        capabilities = frozenset({"chat"})

    ib.register(Small())
    model, _ = offered()["words:one"]
    harmless: dict[str, Any] = {"context_length": 9, "reasoning": "off", "tool_choice": "none", "keep_alive": None}
    assert model.Options(**harmless).model_dump(exclude_none=True) == {
        "context_length": 9,
        "reasoning": False,
        "tool_choice": "none",
    }
    for name, value in (("keep_alive", 3), ("reasoning", "high"), ("tool_choice", "required")):
        given: dict[str, Any] = {name: value}
        with pytest.raises(pydantic.ValidationError, match="backend words does not support"):
            model.Options(**given)


def test_the_oldest_turns_are_left_out_on_request(play: Play) -> None:
    model, scripted = play(text("a"), text("b"), text("c"), text("d"))
    conversation = model.conversation()
    conversation.prompt("one", system="s").text()
    conversation.prompt("two").text()
    scripted.room = 4  # messages
    with pytest.raises(llm.ModelError, match="context window"):
        conversation.prompt("three").text()
    assert conversation.prompt("three", drop_oldest=True).text()
    assert [message.text for message in scripted.asked[-1]] == ["s", "two", "b", "three"]
    scripted.room = 1
    with pytest.raises(llm.ModelError, match="context window"):
        conversation.prompt("four", drop_oldest=True).text()
