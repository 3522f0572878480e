# SPDX-License-Identifier: Apache-2.0
"""Limits for one client of a server: time for headers and bodies, memory, and slots after it disconnected."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

import inference_bridge as ib
from inference_bridge.serve import events
from inference_bridge.serve.sizes import weight_bytes

from ..parts.models.contract_models import DEMO_MODEL
from ..parts.models.tiny import Tiny, auntil, until
from .conftest import Serving
from .test_application import Chats, chat

HEAD = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"


def connected(address: str) -> socket.socket:
    place = urlsplit(address)
    client = socket.create_connection((str(place.hostname), int(place.port or 0)))
    client.settimeout(30)
    return client


@pytest.mark.parametrize(
    "sent", [b"", b"GET /health HTTP/1.1\r\nhost: 127", b"GET /health HTTP/1.1\r\nhost: a\r\n\r\nGET"]
)
def test_a_connection_without_a_whole_request_is_closed(serving: Serving, sent: bytes) -> None:
    address = serving({"words": Chats()}, head_seconds=0.2)
    with connected(address) as client:
        client.sendall(sent)
        while client.recv(4096):
            pass


def test_a_request_may_take_longer_than_its_headers(serving: Serving) -> None:
    class Slow(Chats):
        def _run(self, request: ib.Request) -> Iterator[ib.Token]:
            time.sleep(1.5)
            yield ib.Token("done")

    address = serving({"words": Slow()}, head_seconds=1.0)
    answer = httpx2.post(f"{address}/v1/chat/completions", json=chat()).json()
    assert answer["choices"][0]["message"]["content"] == "done"


def test_headers_have_a_limit(serving: Serving) -> None:
    address = serving({"words": Chats()})
    with connected(address) as client:
        try:
            client.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n" + b"x: " + b"y" * (1 << 20))
            answer = client.recv(4096)
        except ConnectionError:
            return
    assert not answer or answer.startswith(b"HTTP/1.1 400")


def test_a_body_that_does_not_come_is_408(serving: Serving) -> None:
    address = serving({"words": Chats()}, body_seconds=0.2)
    with connected(address) as client:
        client.sendall(f"{HEAD}content-length: 100\r\n\r\n{{".encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("framing", ["content-length: 5000\r\n\r\n", "transfer-encoding: chunked\r\n\r\n1388\r\n"])
def test_a_body_that_is_too_large_is_413(serving: Serving, framing: str) -> None:
    address = serving({"words": Chats()}, max_body=2000)
    with connected(address) as client:
        client.sendall(f"{HEAD}{framing}{'x' * 5000}".encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_client_that_does_not_read_is_disconnected(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "SEND_SECONDS", 0.2)

    class Endless(Tiny):
        capabilities = frozenset({"chat"})

        def _run(self, request: ib.Request) -> Iterator[ib.Token]:
            self.begun += 1
            try:
                while True:
                    yield ib.Token("x" * 10_000)
            finally:
                self.ended += 1

    model = Endless()
    address = serving({"words": model})
    body = json.dumps(chat(stream=True, max_tokens=10**6)).encode()
    with connected(address) as client:
        client.sendall(f"{HEAD}content-length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: model.ended == 1)


def test_a_client_can_refuse_to_wait_for_a_load(serving: Serving) -> None:
    address = serving({"small": DEMO_MODEL})
    asked = {"model": "small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    answer = httpx2.post(f"{address}/v1/chat/completions", json=asked, headers={"prefer": "wait=0"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_loading")
    assert answer.headers["retry-after"]
    assert httpx2.post(f"{address}/v1/chat/completions", json=asked, timeout=60).status_code == 200
    wrong = httpx2.post(f"{address}/v1/chat/completions", json=asked, headers={"prefer": "wait=soon"})
    assert wrong.status_code == 400


def test_a_name_of_the_configuration_file_is_loaded_with_its_options(
    serving: Serving, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        f'[models.tiny]\nsource = "{DEMO_MODEL}"\ncontext_length = 300\n[models.tiny.options]\nmax_tokens = 3\n'
    )
    monkeypatch.setenv("INFERENCE_BRIDGE_CONFIG", str(file))
    address = serving({"mine": "tiny"}, preload=True)
    asked: dict[str, Any] = {"model": "mine", "messages": [{"role": "user", "content": "Count to ten."}]}
    assert httpx2.post(f"{address}/v1/chat/completions", json=asked).json()["usage"]["completion_tokens"] == 3
    counted = httpx2.post(f"{address}/tokenize", json={"content": "x"}).json()
    assert counted["max_model_len"] >= 300
    assert counted["max_model_len"] < 600


def test_a_models_weights_are_its_files(demo_model_path: Any, tmp_path: Any) -> None:
    assert weight_bytes(DEMO_MODEL) == weight_bytes(str(demo_model_path)) == demo_model_path.stat().st_size
    for part in ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "b.safetensors", "c.safetensors"):
        (tmp_path / part).write_bytes(b"12345")
    assert weight_bytes(str(tmp_path / "a-00001-of-00002.gguf")) == 10
    assert weight_bytes(str(tmp_path)) == 10
    assert weight_bytes("http://127.0.0.1:1/v1") == 0
    assert weight_bytes("nowhere") == 0


async def test_clients_that_cancel_at_random_leave_every_slot_free(serving: Serving) -> None:
    """Complete and streamed answers, before and after their first token, while other clients are served."""
    with ib.load_model(DEMO_MODEL, context_length=256, parallel_slots=4) as model:
        address = serving({"small": model}, max_queue=64)
        chance = random.Random(3)
        question = [{"role": "user", "content": "Write a sentence about cats."}]
        alone = model.chat(question, max_tokens=8).text()

        async with httpx2.AsyncClient(base_url=address, timeout=60, limits=httpx2.Limits(max_connections=64)) as client:

            async def leaves(path: str) -> None:
                body = {"model": "small", "messages": question, "max_tokens": 100, "stream": chance.random() < 0.7}
                try:
                    async with asyncio.timeout(chance.random() * 3):
                        async with client.stream("POST", path, json=body) as answer:
                            async for _ in answer.aiter_lines():
                                pass
                except TimeoutError:
                    pass

            async def stays() -> str:
                body = {"model": "small", "messages": question, "max_tokens": 8, "temperature": 0}
                answer = await client.post("/v1/chat/completions", json=body)
                return str(answer.json()["choices"][0]["message"]["content"])

            paths = ["/v1/chat/completions", "/v1/messages"]
            async with asyncio.TaskGroup() as group:
                staying = [group.create_task(stays()) for _ in range(4)]
                for index in range(40):
                    group.create_task(leaves(paths[index % 2]))
            assert {task.result() for task in staying} == {alone}
            assert set(await asyncio.gather(*(stays() for _ in range(4)))) == {alone}
        await auntil(lambda: not model._life.running)
