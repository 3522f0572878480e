# SPDX-License-Identifier: Apache-2.0
"""What `serve` costs: tokens per second of 1, 8 and 16 HTTP clients, against the same model in process.

And the server's processor time for each streamed token, over a model that answers at once.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import psutil

from benchmarks.engine import demo_model
from benchmarks.report import Calm, compare, facts, parser, report, take_turns
from inference_bridge import TextModel, load_model

CLIENTS = (1, 8, 16)
MESSAGES = [{"role": "user", "content": "Write a long story about a cat."}]


@contextmanager
def served(*command: str) -> Iterator[tuple[httpx2.Client, psutil.Process]]:
    """Run a server on a free port: a client of it, and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", *command, "--port", str(port)], stderr=subprocess.DEVNULL)
    try:
        limits = httpx2.Limits(max_connections=max(CLIENTS))
        address = f"http://127.0.0.1:{port}"
        with httpx2.Client(base_url=address, trust_env=False, timeout=300, limits=limits) as client:
            until = time.monotonic() + 60
            while True:
                try:
                    client.get("/health").raise_for_status()
                    break
                except httpx2.TransportError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.1)
            yield client, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def streamed(client: httpx2.Client, tokens: int) -> int:
    """Read one streamed answer. Returns how many chunks have text."""
    body = {"model": "model", "messages": MESSAGES, "max_tokens": tokens, "temperature": 0, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        return sum('"content":"' in line and '"content":""' not in line for line in answer.iter_lines())


def over_http(client: httpx2.Client, clients: int, tokens: int) -> float:
    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        got = sum(pool.map(lambda _: streamed(client, tokens), range(clients)))
    return got / (time.perf_counter() - begin)


def in_process(model: TextModel, streams: int, tokens: int) -> float:
    def one(_: int) -> int:
        return sum(bool(token.text) for token in model.chat(MESSAGES, max_tokens=tokens, temperature=0.0))

    begin = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        got = sum(pool.map(one, range(streams)))
    return got / (time.perf_counter() - begin)


def token_cost(client: httpx2.Client, server: psutil.Process, tokens: int) -> float:
    """Microseconds of the server's processor time for each token."""
    before = server.cpu_times()
    got = streamed(client, tokens)
    after = server.cpu_times()
    assert got == tokens, f"{got} tokens came, not {tokens}"
    return (after.user + after.system - before.user - before.system) * 1e6 / tokens


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=7, help="runs of each (default 7, at least 2)")
    options.add_argument("--tokens", type=int, default=64, help="tokens of each answer (default 64)")
    arguments = options.parse_args()
    rounds, calm = 3 if arguments.quick else arguments.rounds, Calm(arguments.patience)
    source = f"llama_cpp:{demo_model()}"

    lines = []
    with (
        served("inference_bridge.cli", "serve", "--no-key", "--preload", "--alias", f"model={source}") as (client, _),
        load_model(source) as model,
    ):
        for count in CLIENTS:
            times = take_turns(
                {
                    "http": lambda count=count: over_http(client, count, arguments.tokens),  # type: ignore[misc]
                    "here": lambda count=count: in_process(model, count, arguments.tokens),  # type: ignore[misc]
                },
                rounds,
                calm,
            )
            lines.append(compare(f"{count} clients", "in process", 0.97, "tok/s", times["http"], times["here"]))
    with served("uvicorn", "benchmarks.baselines.instant_app:application") as (client, server):
        costs = take_turns({"cost": lambda: token_cost(client, server, 20_000)}, rounds, calm)["cost"]
        limit = [40.0] * len(costs)
        lines.append(compare("server CPU a streamed token", "40 µs", 1, "µs", costs, limit, at_most=True))

    report(facts("inference-bridge", "starlette", "uvicorn", "llama-cpp-python"), lines, calm, arguments.json)


if __name__ == "__main__":
    main()
