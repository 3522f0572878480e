# SPDX-License-Identifier: Apache-2.0
"""The tool calls of one streamed answer, from the pieces in which each server sends them.

OpenAI numbers the calls: the first piece of a call has its index, id and name, later ones the index alone.
Ollama and LiteLLM give several whole calls index 0, other servers give no index, or no id.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping
from typing import Any

from ....authoring.answer_checks import why_not_forced
from ....errors import ServerError, ToolCallCutError
from ....types import ToolCallDelta

_SHOWN = 100
"""Characters of unreadable arguments that an error quotes."""


def cut_off() -> ToolCallCutError:
    """Return the error of an answer that ended at a limit before the tool call that it had to make was complete."""
    return ToolCallCutError("the tool call is not complete: raise max_tokens or context_length")


def check_choice(choice: str | None, names: Collection[str | None]) -> None:
    """Check that an answer that ended by itself has the tool call that `tool_choice` forces.

    Args:
        choice: The `tool_choice` of the request.
        names: The names of the tools that the answer calls.

    Raises:
        ServerError: The answer has no call, or one of another tool.
    """
    why = why_not_forced(choice, names)
    if why:
        raise ServerError(f"the server did not enforce tool_choice={choice!r}: the answer (on `partial`) {why}")


class _Call:
    """A call whose pieces are coming. `id` is the server's, None where it gave none."""

    def __init__(self, place: int, id: str | None) -> None:
        self.place = place
        self.id = id
        self.name: str | None = None
        self.pieces: list[str] = []

    @property
    def arguments(self) -> Any:
        """The arguments as a value. Raises ValueError where they are not JSON."""
        text = "".join(self.pieces)
        try:
            return json.loads(text) if text.strip() else {}
        except RecursionError:
            raise ValueError("it is nested too deep") from None

    @property
    def is_whole(self) -> bool:
        try:
            return bool(self.pieces) and isinstance(self.arguments, dict)
        except ValueError:
            return False


class ToolCalls:
    """Numbers the calls of an answer. Its truth value says whether there is any."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._at: dict[int, _Call] = {}
        self._ids: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._calls)

    @property
    def any_whole(self) -> bool:
        """Whether a call has its name and all of its arguments."""
        return any(call.name is not None and call.is_whole for call in self._calls)

    @property
    def names(self) -> list[str | None]:
        """The name of each call."""
        return [call.name for call in self._calls]

    def delta(self, piece: Mapping[str, Any]) -> ToolCallDelta:
        """Make a ToolCallDelta of one piece. Raises TypeError for what is not a piece of a call."""
        function = piece.get("function") or {}
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            arguments = "" if arguments is None else json.dumps(arguments, ensure_ascii=False)
        index, id, name = piece.get("index"), piece.get("id") or None, function.get("name") or None
        id = str(id) if type(id) is int else id
        if not isinstance(id, str | None) or not isinstance(name, str | None):
            raise TypeError("the id and the name of a call are text")
        index = index if type(index) is int else None
        call = self._continued(index, id, name)
        begins = call is None
        if call is None:
            call = _Call(len(self._calls), id)
            self._calls.append(call)
        if index is not None:
            self._at[index] = call
        call.id = call.id or id
        named = name if call.name is None else None
        call.name = call.name or name
        if arguments:
            call.pieces.append(arguments)
        given = None
        if begins:  # some servers give the same id to several calls, and results could not be told apart
            given = id if id and id not in self._ids else f"call_{uuid.uuid4().hex[:24]}"
            self._ids.add(given)
        return ToolCallDelta(call.place, given, named, arguments)

    def _continued(self, index: int | None, id: str | None, name: str | None) -> _Call | None:
        """The call to which a piece belongs; None: it begins another one."""
        if index is not None:
            call = self._at.get(index)
            if call is not None and id and call.id and id != call.id:
                return None  # another call at the same index
        elif id:
            call = next((one for one in reversed(self._calls) if one.id == id), None)
        else:
            call = self._calls[-1] if self._calls else None
        if call is None:
            return None
        repeated = name is not None and call.name is not None and (index is None or not id)
        if repeated and (name != call.name or call.is_whole):
            return None  # the name again, behind a call that is whole: another call
        return call

    def check(self) -> None:
        """Raise ServerError if a call can't be read."""
        for call in self._calls:
            if call.name is None:
                raise ServerError("a tool call in the answer has no name")
            try:
                readable = isinstance(call.arguments, dict)
            except ValueError:
                readable = False
            if not readable:
                shown = "".join(call.pieces)[:_SHOWN]
                raise ServerError(f"the arguments of the call of {call.name!r} are not a JSON object: {shown!r}")
