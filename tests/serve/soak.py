# SPDX-License-Identifier: Apache-2.0
"""Soak `inference-bridge serve`: clients that cancel, read slowly, send half a request or are killed.

    python -m tests.serve.soak                             64 clients for 60 seconds
    python -m tests.serve.soak --seconds 10 --clients 16

The server is a process of its own, with one model in it and another on a managed llama-server. The clients are
processes too, of which one is killed each second. Afterwards every slot must be free, the answers must be those from
before, and the server must have no more open files and threads than before. Then the server is killed, and
everything that it had started must end. The exit status is 1 where something was left.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2
import psutil

from ..parts.models.contract_models import DEMO_MODEL
from ..parts.servers.managed import runs

IN_PROCESS, MANAGED = "in-process", "managed"
SLOTS = 4
"""Slots of each model, as by default."""
EACH = 8
"""Connections of one client process."""
START_SECONDS = 120.0
SETTLE_SECONDS = 60.0
"""Time for the server to notice that clients are gone."""
SPARE_FILES = 8
"""Open files that may come and go by themselves: logs, connections of a pool."""
SPARE_BYTES = 200 << 20
"""Memory by which the server may grow: caches of prefixes fill up to their limits."""
QUESTION = [{"role": "user", "content": "Write a sentence about cats."}]
ROUTES = ("/v1/chat/completions", "/v1/messages", "/v1/responses")


# ---------------------------------------------------------------- clients


async def client(url: str, connections: int, seed: int) -> None:
    """Misbehave on several connections until the process is ended."""
    limits = httpx2.Limits(max_connections=connections)
    async with httpx2.AsyncClient(base_url=url, timeout=120, trust_env=False, limits=limits) as http:
        await asyncio.gather(*(_misbehave(http, url, random.Random(seed + index)) for index in range(connections)))


async def _misbehave(http: httpx2.AsyncClient, url: str, chance: random.Random) -> None:
    kinds = (_cancels, _cancels, _cancels, _reads_slowly, _sends_half)
    while True:
        try:
            await chance.choice(kinds)(http, url, chance)
        except (httpx2.HTTPError, OSError, TimeoutError):
            await asyncio.sleep(0.05)


def _body(chance: random.Random, route: str, **more: object) -> dict[str, object]:
    asked: dict[str, object] = {"model": chance.choice([IN_PROCESS, MANAGED]), **more}
    number = chance.randrange(1000)
    if route == "/v1/responses":
        return {**asked, "input": f"{number}. Write a story.", "max_output_tokens": 64, "store": False}
    return {**asked, "messages": [{"role": "user", "content": f"{number}. Write a story."}], "max_tokens": 64}


async def _cancels(http: httpx2.AsyncClient, url: str, chance: random.Random) -> None:
    route = chance.choice(ROUTES)
    async with asyncio.timeout(chance.random() * 3):
        stream = chance.random() < 0.7
        async with http.stream("POST", route, json=_body(chance, route, stream=stream)) as answer:
            async for _ in answer.aiter_lines():
                pass


async def _reads_slowly(http: httpx2.AsyncClient, url: str, chance: random.Random) -> None:
    async with asyncio.timeout(5):
        async with http.stream("POST", ROUTES[0], json=_body(chance, ROUTES[0], stream=True)) as answer:
            async for _ in answer.aiter_lines():
                await asyncio.sleep(0.3)


async def _sends_half(http: httpx2.AsyncClient, url: str, chance: random.Random) -> None:
    place = urlsplit(url)
    body = json.dumps(_body(chance, ROUTES[0])).encode()
    head = f"POST {ROUTES[0]} HTTP/1.1\r\nhost: {place.netloc}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    whole = head + body
    _, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        writer.write(whole[: chance.randrange(len(whole))])
        await writer.drain()
        await asyncio.sleep(chance.random() * 3)
    finally:
        writer.close()


# ---------------------------------------------------------------- the server


@contextmanager
def serving(seconds: float = START_SECONDS) -> Iterator[tuple[psutil.Process, str]]:
    """Run the server: its process and URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sources = {IN_PROCESS: DEMO_MODEL, MANAGED: f"llama_server:{DEMO_MODEL.removeprefix('llama_cpp:')}"}
    aliases = [word for name, source in sources.items() for word in ("--alias", f"{name}={source}")]
    process = subprocess.Popen(
        [sys.executable, "-m", "inference_bridge.cli", "serve", "--no-key", "--port", str(port), *aliases],
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + seconds
        while True:
            try:
                httpx2.get(f"{url}/health", trust_env=False)
                break
            except httpx2.TransportError:
                if process.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.1)
        yield psutil.Process(process.pid), url
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Held:
    """The resources of a process."""

    files: int
    threads: int
    bytes: int

    @classmethod
    def by(cls, process: psutil.Process) -> Held:
        return cls(process.num_fds(), process.num_threads(), process.memory_info().rss)


async def answers(url: str, name: str) -> set[str]:
    """The answers of a model on all of its slots concurrently."""
    body = {"model": name, "messages": QUESTION, "max_tokens": 8, "temperature": 0}
    async with httpx2.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
        got = await asyncio.gather(*(http.post(ROUTES[0], json=body) for _ in range(SLOTS)))
    return {one.raise_for_status().json()["choices"][0]["message"]["content"] for one in got}


def soak(seconds: float, clients: int, seed: int) -> list[str]:
    """Run it.

    Args:
        seconds: The time for which the clients misbehave.
        clients: How many connections there are at once.
        seed: The seed of all random choices.

    Returns:
        Descriptions of leaks and losses; empty if there are none.
    """
    with serving() as (server, url):
        before = {name: asyncio.run(answers(url, name)) for name in (IN_PROCESS, MANAGED)}
        started = Held.by(server)
        killed = _misuse(url, seconds, clients, random.Random(seed))
        wrong = _left_in(server, url, started, before)
        children = server.children(recursive=True)
        sys.stdout.write(f"{clients} clients for {seconds:g} s, {killed} client processes killed\n")
        sys.stdout.write(f"the server before: {started}\nthe server after:  {Held.by(server)}\n")
    wrong += [f"process {child.pid} outlives the server" for child in children if not _ends(child.pid)]
    return wrong


def _misuse(url: str, seconds: float, clients: int, chance: random.Random) -> int:
    """Run clients, and kill one process a second. Returns how many were killed."""
    sizes = [min(EACH, clients - begun) for begun in range(0, clients, EACH)]

    def start(size: int) -> subprocess.Popen[bytes]:
        arguments = ["--client", url, "--clients", str(size), "--seed", str(chance.randrange(1 << 30))]
        return subprocess.Popen([sys.executable, "-m", "tests.serve.soak", *arguments])

    processes = [start(size) for size in sizes]
    killed = 0
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(1.0, seconds / 3))
            index = chance.randrange(len(processes))
            processes[index].send_signal(signal.SIGKILL)
            processes[index].wait()
            killed += 1
            processes[index] = start(sizes[index])
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return killed


def _left_in(server: psutil.Process, url: str, started: Held, before: dict[str, set[str]]) -> list[str]:
    """Descriptions of the resources that the server still holds for disconnected clients."""
    wrong = [
        f"{name} answers {after} and answered {before[name]}"
        for name in before
        if (after := asyncio.run(answers(url, name))) != before[name]
    ]
    end = time.monotonic() + SETTLE_SECONDS
    held = Held.by(server)
    while held.files > started.files + SPARE_FILES and time.monotonic() < end:
        time.sleep(0.2)
        held = Held.by(server)
    if held.files > started.files + SPARE_FILES:
        wrong.append(f"{held.files - started.files} open files are left")
    if held.threads > started.threads + SLOTS:
        wrong.append(f"{held.threads - started.threads} threads are left")
    if held.bytes > started.bytes + SPARE_BYTES:
        wrong.append(f"the server has grown by {(held.bytes - started.bytes) >> 20} MiB")
    return wrong


def _ends(pid: int) -> bool:
    end = time.monotonic() + SETTLE_SECONDS
    while runs(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Soak `inference-bridge serve` with clients that misbehave.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=64, help="connections at once")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--client", metavar="URL", help="be one of the clients, until killed")
    asked = parser.parse_args(arguments)
    if asked.client:
        asyncio.run(client(asked.client, asked.clients, asked.seed))
    wrong = soak(asked.seconds, asked.clients, asked.seed)
    sys.stdout.write("\n".join(wrong or ["nothing leaked, no slot lost, no process left"]) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
