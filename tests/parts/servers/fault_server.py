# SPDX-License-Identifier: Apache-2.0
"""A server over real sockets with scripted answers, for faults that a real server cannot be made to show."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from inference_bridge import Token
from inference_bridge.backends.http.transport.call import Reader

PROPS = {"default_generation_settings": {"n_ctx": 512}, "total_slots": 2, "chat_template": "", "modalities": {}}
MODELS = {"data": [{"id": "m", "object": "model", "owned_by": "llamacpp", "meta": {"n_vocab": 9}}]}


@dataclass
class Asked:
    """A request that came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Answer = Callable[[socket.socket, Asked], None]
"""Writes to the socket; afterwards the connection is closed."""


@dataclass
class FaultServer:
    """Answers each request by its path: the listed answers in turn, then the last one repeatedly.

    `gone` is set when a client has closed a connection on which `until_gone` waited.
    """

    address: str
    answers: dict[str, list[Answer]]
    asked: list[Asked] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    def answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(20)
            asked = _read(connection)
            if asked is None:
                return
            with self._lock:
                self.asked.append(asked)
                answers = self.answers.get(asked.path.partition("?")[0]) or [status(404, b'{"error":"no such path"}')]
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
            answer(connection, asked)

    def until_gone(self, head: bytes = b"") -> Answer:
        """Sends `head`, and then waits until the client disconnects."""

        def answer(connection: socket.socket, _: Asked) -> None:
            connection.sendall(head)
            with suppress(OSError):
                connection.recv(1)
            self.gone.set()

        return answer


@contextmanager
def serving(answers: dict[str, list[Answer]] | None = None, *, native: bool = True) -> Iterator[FaultServer]:
    """A FaultServer, which says that it is a llama-server where `native`."""
    listening = socket.create_server(("127.0.0.1", 0))
    base: dict[str, list[Answer]] = {"/v1/models": [reply(MODELS)]}
    if native:
        base["/props"] = [reply(PROPS)]
    server = FaultServer(f"http://127.0.0.1:{listening.getsockname()[1]}", base | (answers or {}))
    threads: list[threading.Thread] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threads.append(threading.Thread(target=server.answer, args=(connection,)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield server
    finally:
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        accepting.join()
        for thread in threads:
            thread.join()


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    """A whole answer."""
    lines = [f"HTTP/1.1 {code} Whatever", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return lambda connection, _: connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)


def reply(value: Any) -> Answer:
    return status(200, json.dumps(value).encode(), Content_Type="application/json")


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def events(*values: Any, done: bool = True) -> bytes:
    """Server-sent events: JSON of anything but bytes, which stand as they are."""
    out = b"".join(
        b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n" for value in values
    )
    return out + b"data: [DONE]\n\n" if done else out


def stream(*values: Any, done: bool = True) -> Answer:
    """A streamed answer, ended by closing the connection."""
    return lambda connection, _: connection.sendall(HEAD + events(*values, done=done))


def closed_when_used_again(*values: Any) -> Answer:
    """A streamed answer over a connection that is kept, and closed when the head of the next request is there."""
    content = events(*values)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {len(content)}\r\n\r\n"

    def answer(connection: socket.socket, _: Asked) -> None:
        connection.sendall(head.encode() + content)
        _read(connection)

    return answer


def raw(*pieces: bytes) -> Answer:
    """These bytes, each in a write of its own."""

    def answer(connection: socket.socket, _: Asked) -> None:
        for piece in pieces:
            connection.sendall(piece)

    return answer


def delta(**fields: Any) -> dict[str, Any]:
    """An event of a streamed chat."""
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def finish(reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def piece(text: str, id: int, place: int) -> dict[str, Any]:
    """An event of a streamed /completion: the token number `place`."""
    return {"content": text, "tokens": [id], "stop": False, "tokens_predicted": place}


def last(count: int, kind: str = "eos", **timings: float) -> dict[str, Any]:
    return {"content": "", "tokens": [], "stop": True, "stop_type": kind, "tokens_predicted": count, "timings": timings}


def tokens_of(reader: Reader, events: Iterable[dict[str, Any]]) -> list[Token]:
    """The tokens of an answer's events, up to the one that ends it. No server is needed."""
    tokens: list[Token] = []
    for event in events:
        tokens += reader.read(event)
        if reader.done:
            break
    return [*tokens, *reader.finish()]


def _read(connection: socket.socket) -> Asked | None:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return None
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        chunk = connection.recv(65536)
        if not chunk:
            return None
        body += chunk
    method, path, _ = first.split(" ")
    return Asked(method, path, headers, body)
