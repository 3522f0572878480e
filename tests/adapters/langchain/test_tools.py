# SPDX-License-Identifier: Apache-2.0
"""Options under the names of LangChain and OpenAI: translated, or refused with an alternative."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_inference_bridge.tools import generate_options, json_schema_of, response_format

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
NAMED = {"name": "answer", "schema": SCHEMA, "strict": True}


@pytest.mark.parametrize(
    ("options", "translated"),
    [
        ({"max_completion_tokens": 3}, {"max_tokens": 3}),
        ({"max_completion_tokens": None, "max_tokens": 4}, {"max_tokens": 4}),
        ({"reasoning_effort": "low"}, {"reasoning": "low"}),
        ({"reasoning_effort": "none"}, {"reasoning": False}),
        ({"reasoning_effort": "minimal"}, {"reasoning": "low"}),
        ({"logprobs": True}, {"logprobs": 1}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        ({"logprobs": False}, {"logprobs": None}),
        ({"logprobs": 2}, {"logprobs": 2}),
        ({"n": 1, "functions": None}, {}),
        ({"response_format": {"type": "json_schema", "json_schema": NAMED}}, {"json_schema": SCHEMA}),
        ({"response_format": NAMED}, {"json_schema": SCHEMA}),
    ],
)
def test_options_of_other_chat_models_are_translated(options: dict[str, Any], translated: dict[str, Any]) -> None:
    assert generate_options(options) == translated


@pytest.mark.parametrize(
    ("options", "error", "instead"),
    [
        ({"n": 2}, TypeError, r"batch\(\)"),
        ({"extra_body": {"top_k": 1}}, TypeError, "extra"),
        ({"functions": []}, TypeError, "tools"),
        ({"function_call": "auto"}, TypeError, "tool_choice"),
        ({"max_completion_tokens": 3, "max_tokens": 4}, ValueError, "max_tokens"),
        ({"top_logprobs": 3}, ValueError, "logprobs"),
        ({"response_format": {"type": "json_schema"}}, ValueError, "schema"),
        ({"response_format": SCHEMA}, ValueError, "schema"),
    ],
)
def test_unsupported_options_are_refused_with_an_alternative(
    options: dict[str, Any], error: type[Exception], instead: str
) -> None:
    with pytest.raises(error, match=instead):
        generate_options(options)


@pytest.mark.parametrize("schema", [NAMED, {"type": "json_schema", "json_schema": NAMED}])
def test_a_schema_in_openai_s_format_is_unwrapped(schema: dict[str, Any]) -> None:
    format = response_format(schema)
    assert json_schema_of(format) == {"title": "answer"} | SCHEMA
    assert format["json_schema"]["name"] == "answer"


def test_a_schema_with_a_property_called_schema_is_taken_as_it_is() -> None:
    schema = {"type": "object", "properties": {"schema": {"type": "string"}}}
    assert json_schema_of(response_format(schema)) == schema
