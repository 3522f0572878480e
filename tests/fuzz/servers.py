# SPDX-License-Identifier: Apache-2.0
"""Targets: answers of servers. They become Tokens and facts of the right types, or a GenerationError."""

from __future__ import annotations

import itertools
import json
import uuid
from typing import Any
from unittest import mock

from inference_bridge.backends.http.detection import server_info
from inference_bridge.backends.http.protocol import llama_api, openai_api
from inference_bridge.backends.http.transport import errors as http_errors
from inference_bridge.backends.http.transport import transfer
from inference_bridge.backends.http.transport.call import Call, Reader
from inference_bridge.backends.http.transport.connection import Connection
from inference_bridge.backends.http.transport.route import Route
from inference_bridge.backends.http.transport.sse import EventReader, EventTooLongError
from inference_bridge.errors import GenerationError, ModelNotFoundError, ServerError
from inference_bridge.options import GenerateConfig
from inference_bridge.request import Request
from inference_bridge.types import GenerateResult, Token, TopLogprob

SECRET = "sk-of-nobody-else"
SHORT = 64


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def sse(data: bytes) -> None:
    def read(pieces: list[bytes]) -> list[bytes]:
        reader = EventReader()
        return [event for piece in pieces for event in reader.feed(piece)] + reader.finish()

    whole = read([data])
    for size in (1, 2, 3, 7):
        assert read(_pieces(data, size)) == whole
    reader = EventReader(SHORT)
    try:
        events = [event for piece in _pieces(data, 5) for event in reader.feed(piece)] + reader.finish()
    except EventTooLongError:
        return
    assert all(len(event) <= 2 * SHORT for event in events)


# ---------------------------------------------------------------- streamed answers

_CONFIGS = (
    GenerateConfig(),
    GenerateConfig(stop=["stop", "\n\n"], logprobs=2, stop_tokens=[7]),
)


def answers(data: bytes) -> None:
    for kind in (llama_api.CompletionReader, openai_api.ChatReader, openai_api.CompletionReader):
        for config in _CONFIGS:
            whole = _answer(kind(Request("chat", config)), [data])
            assert _answer(kind(Request("chat", config)), _pieces(data, 9)) == whole


def _answer(reader: Reader, pieces: list[bytes]) -> tuple[list[Token], str]:
    """The Tokens of an answer in these pieces, and the error that ends it."""
    attempts = transfer._Attempts(
        Route(Connection("http://server.example")), Request("chat", GenerateConfig()), Call("/x"), lambda error: error
    )
    events = transfer._Events(attempts, reader)
    tokens: list[Token] = []
    made = map(uuid.UUID, map("{:032x}".format, itertools.count()))  # the ids of calls that came without one
    with mock.patch.object(uuid, "uuid4", side_effect=made):
        for piece in pieces:
            tokens += events.chunk(piece)
            if events.error is not None or reader.done:
                break
        if events.error is None:
            tokens += events.end()
    for token in tokens:
        _check(token)
    assert events.error is None or isinstance(events.error, GenerationError)
    assert isinstance(GenerateResult(tuple(tokens)).tool_calls, tuple)
    return tokens, repr(events.error)


def _check(token: Token | TopLogprob) -> None:
    token.text.encode()  # whole characters
    assert token.id is None or type(token.id) is int
    assert token.logprob is None or type(token.logprob) is float
    if isinstance(token, Token):
        assert token.kind in ("text", "reasoning", "tool_call")
        assert (token.kind == "tool_call") == (token.tool_call is not None)
        for top in token.top_logprobs:
            _check(top)
        if token.tool_call is not None:
            assert type(token.tool_call.index) is int
            assert token.tool_call.id is None or type(token.tool_call.id) is str
            assert token.tool_call.name is None or type(token.tool_call.name) is str
            assert type(token.tool_call.arguments) is str


# ---------------------------------------------------------------- refusals


def refusals(data: bytes) -> None:
    """A status, a line of what Retry-After says, and the body."""
    head, _, rest = data.partition(b"\n")
    wait, _, body = rest.partition(b"\n")
    status = 100 + int.from_bytes(head, "big") % 500
    headers = {"retry-after": wait.decode("latin-1"), "location": wait.decode("latin-1")}
    url = "http://server.example/v1"
    failure = http_errors.of_status(url, status, headers, body, [SECRET])
    assert isinstance(failure.error, GenerationError)
    assert failure.again in ("no", "soon", "at once", "loading")
    assert failure.wait is None or failure.wait >= 0
    _check_error(failure.error)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return
    _check_error(http_errors.of_event(url, value, [SECRET]))


def _check_error(error: GenerationError) -> None:
    assert SECRET not in str(error)
    assert len(str(error)) < 1000


# ---------------------------------------------------------------- facts


def facts(data: bytes) -> None:
    """A JSON object from paths to the answers at these paths."""
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(found, dict):
        return

    def fetch(connection: Connection, request: Request, call: Call, *_: Any, met: Any = None, **__: Any) -> Any:
        if met is not None:
            met(str(found.get("server", "")))
        if call.path.partition("?")[0] not in found:
            raise ServerError("there is nothing", status=404)
        return found[call.path.partition("?")[0]]

    with mock.patch.object(transfer, "fetch", fetch):
        try:
            said = server_info.ask(Connection("http://server.example"))
        except (ServerError, ModelNotFoundError):
            return
    assert said.model is None or type(said.model) is str
    assert said.slots > 0
    assert all(type(size) is int and size >= 0 for size in (said.info.vocab_size, said.info.context_length))
    assert type(said.model_type) is str
