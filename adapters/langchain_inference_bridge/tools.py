# SPDX-License-Identifier: Apache-2.0
"""What LangChain binds to a chat model, as options of ours: tools, the choice among them, schemas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from inference_bridge import Tool, UnsupportedError

from .answers import PROVIDER

ToolLike = Mapping[str, Any] | type | Callable[..., Any] | BaseTool
"""Whatever LangChain takes for a tool: a schema in one of many forms, a class, a function, a Runnable's tool."""


def openai_tool(tool: ToolLike, *, strict: bool | None = None) -> dict[str, Any]:
    """A tool in OpenAI's form. Raises ValueError for what is no function, but a service of some provider's."""
    converted = convert_to_openai_tool(tool, strict=strict)
    if converted.get("type") != "function":
        raise ValueError(f"a tool of type {converted.get('type')!r} runs at its provider: only functions can be called")
    return converted


def tool_names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    return [Tool.from_dict(tool).name for tool in tools]


def chosen(choice: object, names: Sequence[str]) -> str | None:
    """A tool_choice in any form that LangChain or a provider knows, as ours; None leaves the choice to the model.

    Raises ValueError for a form that is not known, or a tool that is not among `names`.
    """
    if isinstance(choice, Mapping):  # OpenAI's two forms, Anthropic's
        kind = choice.get("type")
        function = choice.get("function")
        if isinstance(function, Mapping):
            choice = function.get("name")
        elif kind in ("function", "tool"):
            choice = choice.get("name")
        else:
            choice = kind
    if choice is None or choice is False:
        return None
    if choice is True or choice in ("any", "required"):
        # One tool is named, for then it is called once: small models would go on calling it.
        return names[0] if len(names) == 1 else "required"
    if isinstance(choice, str) and (choice in ("auto", "none") or choice in names):
        return choice
    known = ", ".join(["auto", "none", "any", *names])
    raise ValueError(f"tool_choice {choice!r} is not known: there are {known}")


def asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a call under GenerateConfig's names, which LangChain and providers have others for."""
    given = _openai_words(options)
    given.pop("response_format", None)
    if given.get("tools"):
        given["tools"] = [openai_tool(tool) for tool in given["tools"]]
    if "tool_choice" in given:
        given["tool_choice"] = chosen(given["tool_choice"], tool_names(given.get("tools") or ()))
    if options.get("response_format") is not None:
        given["json_schema"] = json_schema_of(options["response_format"])
    if given.get("logprobs") is True:
        given["logprobs"] = 1
    return given


def _openai_words(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without the words of OpenAI's clients, which mean the same, nothing, or what can't be done here.

    Raises UnsupportedError for the last, with what to use.
    """
    given = dict(options)
    for word in ("max_completion_tokens", "max_new_tokens"):
        if (limit := given.pop(word, None)) is not None:
            if given.get("max_tokens") not in (None, limit):
                raise ValueError(f"max_tokens and {word} differ: they are the same option")
            given["max_tokens"] = limit
    if given.pop("parallel_tool_calls", None) is False:
        raise UnsupportedError(
            "parallel_tool_calls=False",
            PROVIDER,
            "a forced tool is called once: set tool_choice, or take the first call",
        )
    if given.pop("n", None) not in (None, 1):
        raise UnsupportedError(
            "n", PROVIDER, "an answer is one message: use batch([prompt] * n), which decodes together"
        )
    if given.pop("extra_body", None):
        raise UnsupportedError(
            "extra_body", PROVIDER, "set extra={…} on the chat model, which a server gets with every request"
        )
    return given


# ---------------------------------------------------------------- structured output


def response_format(schema: Any) -> dict[str, Any]:
    """The response_format that asks for JSON of this schema: a class, or a JSON Schema, or a tool's."""
    json_schema = _json_schema(schema)
    name = json_schema.get("title") or getattr(schema, "__name__", "answer")
    return {"type": "json_schema", "json_schema": {"name": name, "schema": json_schema}}


def json_schema_of(format: object) -> Mapping[str, Any] | None:
    """The JSON Schema that a response_format in OpenAI's form asks for. Raises ValueError if it is in another."""
    if isinstance(format, Mapping):
        kind, inside = format.get("type"), format.get("json_schema")
        if kind == "text":
            return None
        if kind == "json_object":
            return {"type": "object"}
        if kind == "json_schema" and isinstance(inside, Mapping) and isinstance(inside.get("schema"), Mapping):
            schema: Mapping[str, Any] = inside["schema"]
            return schema
        if isinstance(format.get("schema"), Mapping) and isinstance(format.get("name"), str):
            bare: Mapping[str, Any] = format["schema"]  # OpenAI's {"name", "schema", "strict"} by itself
            return bare
    elif isinstance(format, type):
        return _json_schema(format)
    raise ValueError('response_format must be {"type": "json_schema", "json_schema": {"schema": …}}, or "json_object"')


def _json_schema(schema: Any) -> dict[str, Any]:
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        # Its own, with what is recursive in it: LangChain's writes references out.
        write: Any = getattr(schema, "model_json_schema", None) or getattr(schema, "schema")  # noqa: B009 - pydantic 1's
        return dict(write())
    if (
        isinstance(schema, Mapping)
        and isinstance(schema.get("schema"), Mapping)
        and isinstance(schema.get("name"), str)
    ):
        return {"title": schema["name"], **schema["schema"]}  # OpenAI's {"name", "schema", "strict"}
    is_tool = isinstance(schema, Mapping) and (schema.keys() & {"function", "parameters", "input_schema", "toolSpec"})
    if isinstance(schema, Mapping) and not is_tool:
        return dict(schema)
    return convert_to_json_schema(schema)
