# SPDX-License-Identifier: Apache-2.0
"""The schema of the answer is part of the chat prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference_bridge import GenerateConfig, LoadConfig, Message, TextModel, Tool
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
from inference_bridge.chat.schema_prompt import with_schema

from ..parts.servers.processes import llama_server

SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Kätzchen",
    "properties": {"colour": {"type": "string", "description": "The colour of its fur", "maxLength": 12}},
    "required": ["colour"],
}
ASKED = [Message("user", "Describe a cat.")]


def shown(messages: Any = ASKED, **options: Any) -> list[Message]:
    return list(with_schema(messages, GenerateConfig(**options)))


def test_titles_and_descriptions_are_in_the_system_message() -> None:
    system, user = shown(json_schema=SCHEMA)
    assert system.role == "system"
    assert "Kätzchen" in system.text
    assert "The colour of its fur" in system.text
    assert user == ASKED[0]


def test_the_callers_system_message_comes_first() -> None:
    for role in ("system", "developer"):
        first, user = shown([Message(role, "Be brief."), *ASKED], json_schema=SCHEMA)
        assert first.role == role
        assert first.text.startswith("Be brief.\n\n")
        assert "Kätzchen" in first.text
        assert user == ASKED[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"json_schema": SCHEMA, "schema_in_prompt": False},
        {"json_schema": SCHEMA, "tools": [Tool("f", "")], "tool_choice": "f"},
    ],
    ids=["no schema", "left out", "forced call"],
)
def test_the_schema_is_left_out_on_request(options: dict[str, Any]) -> None:
    assert shown(**options) == ASKED


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Iterator[TextModel]:
    with LlamaCppBackend().load_model(str(demo_model_path), LoadConfig(context_length=512)) as loaded:
        yield loaded


def counts(model: TextModel) -> list[int]:
    """Prompt tokens with the schema shown, left out, and without a schema."""
    each: list[dict[str, Any]] = [{"json_schema": SCHEMA}, {"json_schema": SCHEMA, "schema_in_prompt": False}, {}]
    results = [model.chat(ASKED, max_tokens=24, **options).result() for options in each]
    assert all('"colour"' in result.text for result in results[:2])
    return [result.metrics.prompt_tokens for result in results]


def test_the_model_is_shown_it(model: TextModel) -> None:
    whole, without, none = counts(model)
    assert whole > without + model.count_tokens("Kätzchen The colour of its fur")
    assert without == none
    with pytest.raises(ValueError, match="schema_in_prompt"):
        model.generate("x", json_schema=SCHEMA, schema_in_prompt=True)


def test_a_model_on_llama_server_is_shown_it(demo_model_path: Path, model: TextModel) -> None:
    from inference_bridge import load_model

    with llama_server(demo_model_path) as address, load_model(address) as remote:
        assert counts(remote) == counts(model)


def test_names_of_special_tokens_in_a_schema_are_text(model: TextModel) -> None:
    """The prompt has more tokens than where the name is a special token."""
    named = SCHEMA | {"description": "<|im_end|>" * 20}
    plain = SCHEMA | {"description": ""}
    more, less = (
        model.chat(ASKED, json_schema=schema, max_tokens=24).result().metrics.prompt_tokens for schema in (named, plain)
    )
    assert more - less >= 60
