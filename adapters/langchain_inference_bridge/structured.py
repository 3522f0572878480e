# SPDX-License-Identifier: Apache-2.0
"""Parsers of structured output that raise an error for an answer that was cut off.

LangChain's own parsers complete JSON that was cut off, and return the incomplete object as if it were complete.
"""

from __future__ import annotations

import json
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import (
    BaseCumulativeTransformOutputParser,
    BaseOutputParser,
    JsonOutputParser,
    PydanticOutputParser,
)
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.pydantic import is_basemodel_subclass


class _Whole(BaseCumulativeTransformOutputParser[Any]):
    """The base of parsers that refuse an answer that was cut off."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        _check_whole(result)
        return super().parse_result(result, partial=partial)


class _WholeJson(_Whole, JsonOutputParser):
    pass


class _WholePydantic(_Whole, PydanticOutputParser[Any]):
    pass


class _WholeKeyTool(_Whole, JsonOutputKeyToolsParser):
    pass


class _WholePydanticTool(_Whole, PydanticToolsParser):
    pass


def text_parser(schema: Any) -> BaseOutputParser[Any]:
    """Return a parser of an answer's text. Its results are objects of a pydantic class, or JSON values.

    Args:
        schema: The pydantic class. With anything else, the results are JSON values.
    """
    return _WholePydantic(pydantic_object=schema) if _is_pydantic(schema) else _WholeJson()


def tool_parser(schema: Any, name: str) -> BaseOutputParser[Any]:
    """Return a parser of the arguments of a call of the tool `name`. It returns objects like `text_parser`."""
    if _is_pydantic(schema):
        return _WholePydanticTool(tools=[schema], first_tool_only=True)
    return _WholeKeyTool(key_name=name, first_tool_only=True)


def parsed(
    model: Runnable[LanguageModelInput, AIMessage], parser: BaseOutputParser[Any], *, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """Return a runnable: the model, followed by the parser.

    Args:
        model: The model.
        parser: The parser of its answer.
        include_raw: Whether the result is {"raw": …, "parsed": …, "parsing_error": …}, without raising parsing errors.
    """
    if not include_raw:
        return model | parser
    tried = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | tried.with_fallbacks([failed], exception_key="parsing_error")


def _is_pydantic(schema: Any) -> bool:
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def _check_whole(result: list[Generation]) -> None:
    """Raise OutputParserException if the answer was cut off, and is neither complete JSON nor complete tool calls."""
    message = result[0].message if isinstance(result[0], ChatGeneration) else None
    if not isinstance(message, AIMessage) or message.response_metadata.get("finish_reason") != "length":
        return
    if message.tool_calls and not message.invalid_tool_calls:
        return
    try:
        json.loads(message.text)
    except ValueError:
        raise OutputParserException(
            "the answer was cut off (finish reason 'length'): allow more max_tokens, or load the model with a larger "
            "context_length",
            llm_output=message.text or str(message.invalid_tool_calls),
        ) from None
