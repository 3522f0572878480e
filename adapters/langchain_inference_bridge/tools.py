# SPDX-License-Identifier: Apache-2.0
"""Translate what LangChain binds to a chat model (tools, tool_choice, response_format) into generation options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from inference_bridge import Tool

ToolLike = Mapping[str, Any] | type | Callable[..., Any] | BaseTool
"""The types that LangChain accepts as a tool: a schema in one of several forms, a class, a function, a tool object."""


def openai_tool(tool: ToolLike, *, strict: bool | None = None) -> dict[str, Any]:
    """Convert a tool to OpenAI's form.

    Args:
        tool: The tool.
        strict: The value of "strict" in the result. None: the result has no "strict".

    Raises:
        ValueError: The tool is not a function, but a service that a provider runs.
    """
    converted = convert_to_openai_tool(tool, strict=strict)
    if converted.get("type") != "function":
        raise ValueError(f"a tool of type {converted.get('type')!r} runs at its provider: only functions can be called")
    return converted


def tool_names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    return [Tool.from_dict(tool).name for tool in tools]


def chosen(choice: object, names: Sequence[str]) -> str | None:
    """Translate a tool_choice.

    Args:
        choice: A tool_choice in a form of LangChain, OpenAI or Anthropic.
        names: The names of the tools.

    Returns:
        GenerateConfig's tool_choice; None leaves the choice to the model.

    Raises:
        ValueError: The form is not known, or the tool is not among `names`.
    """
    if isinstance(choice, Mapping):  # a form of OpenAI or Anthropic
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
        # With a name, the model calls the tool once. With "required", small models call it again and again.
        return names[0] if len(names) == 1 else "required"
    if isinstance(choice, str) and (choice in ("auto", "none") or choice in names):
        return choice
    known = ", ".join(["auto", "none", "any", *names])
    raise ValueError(f"tool_choice {choice!r} is not known: use one of {known}")


_EFFORTS: Mapping[object, bool | str] = {"none": False, "minimal": "low", "xhigh": "high"}
"""OpenAI's values of reasoning_effort that `reasoning` does not have, each with the nearest value of `reasoning`."""

_INSTEAD = {
    "extra_body": "set each option by its name; for other fields of a server use the load option extra",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "model_kwargs": "set each option by its name",
    "n": "call batch() with the same input n times",
}
"""Options of other chat models that are not supported, each with what to do instead."""


def takes_one_call(parallel_tool_calls: object) -> bool:
    """Return whether `parallel_tool_calls` allows only one tool call. Raises TypeError if it is not a bool or None."""
    if parallel_tool_calls is not None and not isinstance(parallel_tool_calls, bool):
        raise TypeError(f"parallel_tool_calls must be a bool, not {type(parallel_tool_calls).__name__}")
    return parallel_tool_calls is False


def generate_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the options of a call into GenerateConfig's.

    Args:
        options: The options, under their names in GenerateConfig, LangChain or OpenAI's API.

    Returns:
        The options under their names in GenerateConfig. An unknown name is kept, so that GenerateConfig refuses it.

    Raises:
        TypeError: An option of other chat models is not supported here; the error says what to do instead.
        ValueError: A tool, a tool_choice or a response_format has an unknown form, or an option is set under two
            names.
    """
    given = {name: value for name, value in options.items() if name != "response_format"}
    if given.get("n") in (None, 1):
        given.pop("n", None)
    for name in given.keys() & _INSTEAD.keys():
        if given.pop(name) is not None:
            raise TypeError(f"{name} is not supported: {_INSTEAD[name]}")
    if given.get("tools"):
        given["tools"] = [openai_tool(tool) for tool in given["tools"]]
    if "tool_choice" in given:
        given["tool_choice"] = chosen(given["tool_choice"], tool_names(given.get("tools") or ()))
    if options.get("response_format") is not None:
        given["json_schema"] = json_schema_of(options["response_format"])
    _rename(given, "max_completion_tokens", "max_tokens")
    _rename(given, "reasoning_effort", "reasoning")
    if isinstance(given.get("reasoning"), str):
        given["reasoning"] = _EFFORTS.get(given["reasoning"], given["reasoning"])
    top = given.pop("top_logprobs", None)
    if isinstance(given.get("logprobs"), bool):
        given["logprobs"] = (1 if top is None else top) if given["logprobs"] else None
    elif top is not None:
        raise ValueError("top_logprobs needs logprobs=True; or set logprobs to the number of most likely tokens")
    return given


def _rename(given: dict[str, Any], other: str, name: str) -> None:
    value = given.pop(other, None)
    if value is None:
        return
    if given.get(name) is not None:
        raise ValueError(f"{other} and {name} are the same option: set one of them")
    given[name] = value


# ---------------------------------------------------------------- structured output


def response_format(schema: Any) -> dict[str, Any]:
    """Return the response_format that requests JSON that satisfies a schema.

    Args:
        schema: A class, a JSON Schema, a tool, or OpenAI's {"name": …, "schema": …}.
    """
    json_schema = _json_schema(schema)
    name = json_schema.get("title") or getattr(schema, "__name__", "answer")
    return {"type": "json_schema", "json_schema": {"name": name, "schema": json_schema}}


def json_schema_of(format: object) -> Mapping[str, Any] | None:
    """Return the JSON Schema of a response_format, or None if it requests text.

    Args:
        format: A response_format in OpenAI's form.

    Raises:
        ValueError: It is in another form.
    """
    if isinstance(format, Mapping):
        kind = format.get("type")
        if kind == "text":
            return None
        if kind == "json_object":
            return {"type": "object"}
        if (inside := _wrapped(format)) is not None:
            return dict(inside["schema"])
    elif isinstance(format, type):
        return _json_schema(format)
    raise ValueError('response_format must be {"type": "json_schema", "json_schema": {"schema": …}}, or "json_object"')


def _json_schema(schema: Any) -> dict[str, Any]:
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        # pydantic writes the schema: LangChain's function replaces references, which fails for a recursive schema.
        write: Any = getattr(schema, "model_json_schema", None) or getattr(schema, "schema")  # noqa: B009 - of pydantic 1
        return dict(write())
    if isinstance(schema, Mapping) and (inside := _wrapped(schema)) is not None:
        about = {"title": inside.get("name"), "description": inside.get("description")}
        return {name: value for name, value in about.items() if isinstance(value, str)} | dict(inside["schema"])
    is_tool = isinstance(schema, Mapping) and (schema.keys() & {"function", "parameters", "input_schema", "toolSpec"})
    if isinstance(schema, Mapping) and not is_tool:
        return dict(schema)
    return convert_to_json_schema(schema)


def _wrapped(format: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return OpenAI's {"name": …, "schema": …}, also if it is inside a response_format; None if there is none."""
    inside = format.get("json_schema") if format.get("type") == "json_schema" else format
    if isinstance(inside, Mapping) and isinstance(inside.get("schema"), Mapping) and "properties" not in inside:
        return inside
    return None
