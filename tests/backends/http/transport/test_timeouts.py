# SPDX-License-Identifier: Apache-2.0
"""Every operation has the same timeouts, in threads and in coroutines, and cancels only its own tasks."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest

from inference_bridge import GenerateResult, ModelClosedError, ServerError, TextModel, load_model
from inference_bridge.backends.http.pooled_models import HttpEmbeddingModel

from ....parts.servers.fault_server import HEAD, Answer, events, piece, reply, serving

pytestmark = [pytest.mark.usefixtures("no_thread_stays"), pytest.mark.timeout(30)]

LIMIT = 0.5
VECTOR = reply({"data": [{"index": 0, "embedding": [1.0, 2.0]}], "usage": {"prompt_tokens": 1}})
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


def dripping(head: bytes, drop: bytes) -> Answer:
    """Sends `head`, and then one `drop` after the other until the client disconnects."""

    def answer(connection: socket.socket, _: object) -> None:
        connection.sendall(head)
        for _ in range(2000):
            connection.sendall(drop)
            time.sleep(0.01)

    return answer


HELLO = events(piece("Hello", 1, 1), done=False)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(
    ("head", "drop", "text"),
    [
        (HEAD, b": still here\n\n", ""),
        (HEAD, b"x", ""),
        (HEAD + b"data: ", b"1", ""),
        (HEAD + HELLO, b": still here\n\n", "Hello"),
        (HEAD + HELLO + b"data: ", b"1", "Hello"),
        (b"", b"H", ""),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y", ""),
    ],
    ids=["comments", "a line", "an event", "comments afterwards", "an event afterwards", "a status", "a header"],
)
def test_a_stream_that_drips_ends_in_time(head: bytes, drop: bytes, text: str, mode: str) -> None:
    with (
        serving({"/completion": [dripping(head, drop)]}) as server,
        load_model(server.address, first_token_timeout=LIMIT) as model,
    ):

        async def drain() -> GenerateResult:
            return await model.agenerate("x").result()

        with pytest.raises(ServerError) as caught:
            model.generate("x").result() if mode == "sync" else asyncio.run(asyncio.wait_for(drain(), 10))
        assert caught.value.partial is not None
        assert caught.value.partial.text == text


def _embed(model: TextModel) -> Any:
    assert isinstance(model, HttpEmbeddingModel)
    return model.embed(["x"])


def _aembed(model: TextModel) -> Any:
    assert isinstance(model, HttpEmbeddingModel)
    return asyncio.run(asyncio.wait_for(model.aembed(["x"]), 10))


FETCHING = {
    "embed": ("/v1/embeddings", _embed),
    "aembed": ("/v1/embeddings", _aembed),
    "count_tokens": ("/tokenize", lambda model: model.count_tokens("x")),
    "classify": ("/tokenize", lambda model: model.classify(["x"])),
    "aclassify": ("/tokenize", lambda model: asyncio.run(asyncio.wait_for(model.aclassify(["x"]), 10))),
}


@pytest.mark.parametrize("name", FETCHING)
def test_a_whole_answer_that_drips_ends_in_time(name: str) -> None:
    path, ask = FETCHING[name]
    with (
        serving({"/v1/embeddings": [VECTOR]}) as server,
        load_model(server.address, first_token_timeout=LIMIT) as model,
    ):
        server.answers[path] = [dripping(WHOLE, b"1\r\n \r\n")]
        with pytest.raises(ServerError, match="first_token_timeout"):
            ask(model)


class _ClosedWithItsAnswer(HttpEmbeddingModel):
    """Is closed just when the answer to `aembed` is there."""

    def _account(self, request: Any, usage: Any) -> None:
        self.close()
        super()._account(request, usage)


async def test_closing_cancels_no_task_of_the_caller() -> None:
    with serving({"/v1/embeddings": [VECTOR]}) as server:
        loaded = load_model(server.address)
        assert isinstance(loaded, HttpEmbeddingModel)
        model = _ClosedWithItsAnswer("http", loaded.connection, facts=loaded.facts)
        assert await model.aembed(["x"]) == [[1.0, 2.0]]
        for _ in range(5):
            await asyncio.sleep(0.001)  # the caller's own task, which the model must not cancel
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        await loaded.aclose()


async def test_closing_during_a_request_ends_only_the_call() -> None:
    with serving({"/v1/embeddings": [VECTOR]}) as server:
        model = load_model(server.address)
        assert isinstance(model, HttpEmbeddingModel)
        server.answers["/v1/embeddings"] = [server.until_gone()]
        asking = asyncio.create_task(model.aembed(["x"]))
        while "/v1/embeddings" not in server.paths()[3:]:  # noqa: ASYNC110 - a thread appends to it
            await asyncio.sleep(0.01)
        await model.aclose()
        with pytest.raises(ModelClosedError):
            await asking
        assert not asking.cancelling()


async def test_cancelling_the_caller_ends_the_request() -> None:
    with serving({"/v1/embeddings": [VECTOR]}) as server:
        model = load_model(server.address)
        assert isinstance(model, HttpEmbeddingModel)
        server.answers["/v1/embeddings"] = [server.until_gone()]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(model.aembed(["x"]), 0.2)
        assert await asyncio.to_thread(server.gone.wait, 5)
        await model.aclose()
