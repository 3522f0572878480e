# SPDX-License-Identifier: Apache-2.0
"""JSON Schemas for a managed server, which ignores a schema that it can't compile and then answers with any text.

So a schema is compiled here, with the compiler of the in-process engines, before it is sent, and the answer is checked
when it has ended. The server of the xllamacpp wheel has the same compiler (llguidance). It gets the schema as rewritten
by that compiler, which also makes the answer compact. Another llama-server gets the original schema: it may have
llguidance, or a converter of its own (common/json-schema-to-grammar.cpp in llama.cpp's repository).

In both cases bounds are added for numbers (see `number_bounds`). Without them a small model may write digits until
max_tokens.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..._calls import strict_json
from ..._concurrency.background import submit
from ...errors import GenerationError
from ...grammar.json_schema import SPACED, json_grammar
from ...grammar.number_bounds import with_bounded_numbers
from ...options import CONSTRAINTS, GenerateConfig, is_forced
from ...request import Request
from ...types import GenerateResult, Token
from ..http.protocol.llama_schema import check_schema, closed
from ..http.protocol.rendered_chat import callable_tools
from . import constraints
from .completion import Completion

_TERM = "%json "

_COMPACT = {"whitespace_flexible": False, "lenient": False, "coerce_one_of": False}
"""Options that every version of llguidance in a server knows. A version refuses options that it does not know."""

_ANY_SPACING = {**_COMPACT, "whitespace_flexible": True}


class ServerSchemas:
    """The constraints of a server, and the checks of its answers.

    Args:
        backend: The backend's name, for messages.
        compiles: Whether the server has llguidance, in a version like the one installed here.
    """

    def __init__(self, backend: str, compiles: bool) -> None:
        self._backend = backend
        self._compiles = compiles

    def check(self, config: GenerateConfig) -> None:
        """Check the constraint of an answer, and the schemas of the calls that are forced.

        Raises:
            ValueError: A schema is invalid, or nothing satisfies it.
            UnsupportedError: The server would not enforce one.
        """
        constraints.check(config, self._backend, self._compiles)
        schemas: list[tuple[Any, str]] = []
        if config.json_schema is not None:
            schemas.append((config.json_schema, "json_schema"))
        if is_forced(config.tool_choice):
            for tool in callable_tools(config):
                schemas.append(({"type": "object", **tool.parameters}, f"the parameters of {tool.name}"))
        for schema, what in schemas:
            self._written(schema, what)
            if not self._compiles:
                check_schema(schema, what, self._backend)

    def sent(self, schema: Mapping[str, Any], *, spaced: bool = False) -> Mapping[str, Any]:
        """Return the schema to send instead of `schema`. With it a server that has llguidance answers in compact JSON.

        Args:
            schema: The schema.
            spaced: Whether one space follows each comma and colon, as in the tool calls that chat templates write. A
                small model's arguments are worse without it.
        """
        spacing = SPACED if spaced else {}
        if self._compiles:
            written = json.loads(_bounded(json.dumps(self._written(schema, "json_schema"))))
            return {**written, "x-guidance": _COMPACT | spacing}
        sent: Mapping[str, Any] = with_bounded_numbers(closed(schema), any_type=False)
        # A server without llguidance ignores the keyword.
        return {**sent, "x-guidance": {"whitespace_flexible": False, **spacing}} if sent else sent

    def sent_grammar(self, config: GenerateConfig) -> str | None:
        """Return the grammar to send for `regex`, `choices` or `grammar`. None: none of them is set."""
        return constraints.sent(config, self._backend, self._compiles)

    def completes(self, config: GenerateConfig) -> bool:
        """Return whether an answer that max_tokens cuts off is completed.

        It is not if log probabilities are wanted, because those of the completion are not known, or if stop strings
        may end the answer.
        """
        if (config.max_tokens or -1) < 0 or config.logprobs or config.stop or config.stop_tokens:
            return False
        return _constraint_of(config) is not None and not is_forced(config.tool_choice)

    def completion(self, request: Request, count: Callable[[str], int]) -> Completion | None:
        """Return the object that completes the answer within max_tokens. None: it is not completed, see `completes`.

        Args:
            request: The request.
            count: Returns the number of the model's tokens in a text.
        """
        config = request.config
        if not self.completes(config):
            return None
        _import_numpy()
        return Completion(request, self._grammar(config), count, is_json=config.json_schema is not None)

    def is_checked(self, request: Request) -> bool:
        """Return whether an answer is checked when it has ended, by itself or at its limit of tokens."""
        config = request.config
        if request.cancelled or config.stop or config.stop_tokens:
            return False
        if is_forced(config.tool_choice) and callable_tools(config):
            return request.finish_reason != "length"  # a call that was cut off has already raised an error
        return _constraint_of(config) is not None

    def check_answer(self, request: Request, answer: Sequence[Token]) -> None:
        """Check an answer that has ended.

        Args:
            request: The request.
            answer: All tokens of the answer.

        Raises:
            GenerationError: The answer does not satisfy its constraint or its `tool_choice`.
        """
        if not self.is_checked(request):
            return
        config, result = request.config, GenerateResult(tuple(answer))
        if is_forced(config.tool_choice) and callable_tools(config):
            if not result.tool_calls:
                raise GenerationError(
                    f"{self._backend} did not enforce tool_choice={config.tool_choice!r}: the server answered with "
                    "text (on `partial`), and its log says why"
                )
        elif not result.tool_calls and not self._satisfies(
            result.text, config, is_cut=request.finish_reason == "length"
        ):
            name = _constraint_of(config)
            raise GenerationError(
                f"{self._backend} did not enforce {name}: the answer (on `partial`) does not satisfy it"
            )

    def _satisfies(self, text: str, config: GenerateConfig, *, is_cut: bool = False) -> bool:
        """Return whether the constraint allows the text; if it was cut off, whether an answer may begin with it."""
        from llguidance import LLMatcher, LLTokenizer

        # With the tokenizer "byte" each byte is a token.
        matcher = LLMatcher(LLTokenizer("byte"), self._grammar(config), log_level=0)
        is_json = config.json_schema is not None
        text = text.strip() if is_json else text
        # U+FFFD at the end stands for a part of a character.
        data = list((text.rstrip("\ufffd") if is_cut else text).encode())
        if matcher.try_consume_tokens(data) < len(data):
            return False
        if is_cut:
            return True
        return bool(matcher.is_accepting()) and (not is_json or _is_finite(text))

    def _grammar(self, config: GenerateConfig) -> str:
        """Return the answers that are allowed, as a grammar for llguidance."""
        if (grammar := constraints.lark(config, self._backend)) is not None:
            return grammar
        written = self._written(config.json_schema, "json_schema")
        schema = {**written, "x-guidance": _COMPACT if self._compiles else _ANY_SPACING}
        return f"start: {_TERM}{json.dumps(schema)}"

    def _written(self, schema: Any, what: str) -> Mapping[str, Any]:
        """Return the schema as rewritten by the compiler. Raises ValueError and UnsupportedError."""
        written: Mapping[str, Any] = json.loads(
            json_grammar(schema, what=what, backend=self._backend).removeprefix(_TERM)
        )
        return written


def _constraint_of(config: GenerateConfig) -> str | None:
    """Return the name of the option that constrains the answer, or None."""
    return next((name for name in CONSTRAINTS if getattr(config, name) is not None), None)


@lru_cache(maxsize=64)
def _bounded(text: str) -> str:
    """Return a schema, in JSON, with bounds for its numbers. If llguidance can't compile that, return it unchanged."""
    from llguidance import LLMatcher

    schema = with_bounded_numbers(json.loads(text), any_type=True)
    compact = json.dumps({**schema, "x-guidance": _COMPACT})
    failed, _ = LLMatcher.validate_grammar_with_warnings(f"start: {_TERM}{compact}")
    return text if failed else json.dumps(schema)


def _is_finite(text: str) -> bool:
    """Return whether Python reads each number in a JSON text as a finite number."""
    try:
        strict_json.loads(text)
    except ValueError:
        return False
    return True


def _import_numpy() -> None:
    """Import numpy in another thread, because Ctrl-C only interrupts the main thread.

    If an import of numpy was interrupted, the next import gives a module that lacks half of its functions.
    """
    if "numpy" not in sys.modules:
        submit(lambda: importlib.import_module("numpy")).result()
