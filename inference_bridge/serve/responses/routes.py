# SPDX-License-Identifier: Apache-2.0
"""The routes /v1/responses and /v1/responses/{id}."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...types import Message, ToolCall, ToolCallDelta, join_tool_calls
from ..errors import RequestError
from ..events import JSONAnswer
from ..operation import Conversation, answer
from ..pool import ModelPool
from .answers import ResponseFormat
from .requests import ResponseRequest, response_request
from .store import ResponseStore, Stored


class ResponseRoutes:
    """The routes, and the responses that they keep."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    async def create(self, request: Request, body: object, pool: ModelPool) -> Response:
        """Answer POST /v1/responses."""
        asked = response_request(body)
        earlier: tuple[Message, ...] = ()
        if asked.previous is not None:
            earlier = self._found(asked.previous, 400, "previous_response_id").messages
        turns = (*earlier, *asked.messages)
        system = (Message("system", asked.instructions),) if asked.instructions else ()
        conversation = Conversation(asked.model, (*system, *turns), asked.config, asked.stream, one_call=asked.one_call)
        return await answer(request, pool, conversation, ResponseFormat(asked, self._store_when_finished(asked, turns)))

    async def one(self, request: Request) -> Response:
        """Answer GET and DELETE /v1/responses/{id}."""
        id = request.path_params["id"]
        try:
            found = self._found(id, 404, None)
        except RequestError as problem:
            return problem.response(request.url.path)
        if request.method == "DELETE":
            self._store.remove(id)
            return JSONAnswer({"id": id, "object": "response", "deleted": True})
        return JSONAnswer(found.response)

    def _found(self, id: str, status: int, param: str | None) -> Stored:
        found = self._store.get(id)
        if found is None:
            why = f"response {id!r} not found: this server keeps only the latest responses, in memory"
            raise RequestError(status, why, param=param, code="previous_response_not_found" if param else None)
        return found

    def _store_when_finished(
        self, asked: ResponseRequest, turns: tuple[Message, ...]
    ) -> Callable[[dict[str, Any]], None]:
        def finished(response: dict[str, Any]) -> None:
            if asked.store:
                self._store.put(Stored(response, (*turns, _answer(response))))

        return finished


def _answer(response: dict[str, Any]) -> Message:
    """Return a response as the assistant's message."""
    text = reasoning = ""
    calls: list[ToolCall] = []
    for item in response["output"]:
        if item["type"] == "message":
            text += item["content"][0]["text"]
        elif item["type"] == "reasoning":
            reasoning += item["content"][0]["text"]
        else:
            calls += _complete(item)
    return Message("assistant", text, calls, reasoning=reasoning or None)


def _complete(item: dict[str, Any]) -> tuple[ToolCall, ...]:
    """Return the call of an item. The tuple is empty if a limit ended the call before its arguments were complete."""
    return join_tool_calls([ToolCallDelta(0, item["call_id"], item["name"], item["arguments"])])
