# SPDX-License-Identifier: Apache-2.0
"""Compares an answer with the JSON schema that was set for it: a server may ignore the schema, or parts of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ....authoring.answer_checks import why_not_satisfied
from ....errors import ServerError
from ....request import Request
from ....types import Token
from ..transport.call import Reader


class JSONAnswer:
    """Reads the events of an answer as another reader does, and checks the text at the end.

    Args:
        reader: Makes the tokens.
        request: The request, whose `finish_reason` the reader sets.
    """

    def __init__(self, reader: Reader, request: Request) -> None:
        self._reader = reader
        self._request = request
        self._text: list[str] = []
        self._has_calls = False

    @property
    def done(self) -> bool:
        return self._reader.done

    @done.setter
    def done(self, value: bool) -> None:
        self._reader.done = value

    def read(self, event: Any) -> Sequence[Token]:
        return self._taken(self._reader.read(event))

    def finish(self) -> Sequence[Token]:
        """Return the last tokens.

        Raises:
            ServerError: The answer ended by itself, and its text does not satisfy the schema.
        """
        tokens = self._taken(self._reader.finish())
        schema = self._request.config.json_schema
        if schema is not None and self._request.finish_reason != "length" and not self._has_calls:
            why = why_not_satisfied("".join(self._text), schema)
            if why:
                raise ServerError(f"the server did not enforce json_schema: its answer (on `partial`) {why}")
        return tokens

    def _taken(self, tokens: Sequence[Token]) -> Sequence[Token]:
        for token in tokens:
            self._has_calls = self._has_calls or token.tool_call is not None
            if token.kind == "text":
                self._text.append(token.text)
        return tokens


def checked(reader: Callable[[Request], Reader]) -> Callable[[Request], Reader]:
    """Return a maker of readers that check the answer to a request that has a JSON schema."""

    def made(request: Request) -> Reader:
        own = reader(request)
        return own if request.config.json_schema is None else JSONAnswer(own, request)

    return made
