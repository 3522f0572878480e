# SPDX-License-Identifier: Apache-2.0
"""Servers that can't be run in tests, as answers written after their documentation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from inference_bridge import Tool, load_model
from inference_bridge.backends.http.model import HttpModel

from .fault_server import HEAD, Answer, FaultServer, raw, reply, serving, status

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "What is the weather in Ulm?"}]
WEATHER = Tool("weather", "The weather in a city", {"type": "object", "properties": {"city": {"type": "string"}}})
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class Recorded(NamedTuple):
    """A server that gives recorded answers, and the model on it."""

    server: FaultServer
    model: HttpModel

    def sent(self, path: str = CHAT) -> dict[str, Any]:
        """The body of the last request to `path`, without the fields of every request."""
        body: dict[str, Any] = [asked.json for asked in self.server.asked if asked.path == path][-1]
        return {name: value for name, value in body.items() if name not in _ALWAYS}


_ALWAYS = ("messages", "stream", "stream_options", "model", "max_tokens", "temperature")


@contextmanager
def recorded(models: Any, answers: Mapping[str, Answer], **options: Any) -> Iterator[Recorded]:
    """Serve `answers` by their paths, and `models` as the list of models; `options` are load options."""
    by_path = {"/v1/models": [reply(models)], **{path: [answer] for path, answer in answers.items()}}
    with serving(by_path, native=False) as server, load_model(server.address, **options) as model:
        assert isinstance(model, HttpModel)
        yield Recorded(server, model)


def text(body: str) -> Answer:
    """A streamed answer, byte for byte."""
    return raw(HEAD, body.encode())


def refusal(code: int, body: Any) -> Answer:
    return status(code, json.dumps(body).encode(), Content_Type="application/json")
