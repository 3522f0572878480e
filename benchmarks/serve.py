# SPDX-License-Identifier: Apache-2.0
"""Measure `serve`: tokens per second of 1, 8 and 16 HTTP clients.

On llama_cpp it is compared with the same model in process, and with llama-server with the same slots and threads. On
MLX with a JSON Schema, it is compared with mlx-lm's `batch_generate` without a schema; without a schema, with
mlx_lm.server. Also measure the server's processor time per streamed token, with a model that answers at once.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil

from benchmarks.baselines.server import server
from benchmarks.engine import demo_model
from benchmarks.report import IdleMachine, Line, compare, facts, parser, report, take_turns
from inference_bridge import TextModel, load_model
from inference_bridge.engine.hardware import physical_cores
from tests.parts.models.mlx_convert import convert
from tests.parts.servers.processes import mlx_server

CLIENTS = (1, 8, 16)
MLX_CLIENTS = 4
LENGTH = 1024
STORY = {"type": "object", "properties": {"story": {"type": "string"}}, "required": ["story"]}


_numbers = itertools.count()


def messages() -> list[dict[str, str]]:
    """Return a conversation of which a prefix cache has at most the system message."""
    return [{"role": "user", "content": f"{next(_numbers)} cats: write a long story about them."}]


@contextmanager
def served(*command: str, **environment: str) -> Iterator[tuple[httpx2.Client, psutil.Process]]:
    """Run a server on a free port. Yield a client for it, and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = [sys.executable, "-m", *command, "--port", str(port)]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | environment)
    try:
        with client_of(f"http://127.0.0.1:{port}") as client:
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


@contextmanager
def bridge(source: str, **load: Any) -> Iterator[httpx2.Client]:
    """Run `inference-bridge serve` with one model, which is loaded at the start."""
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "bridge.toml")
        options = "\n".join(f"{name} = {json.dumps(value)}" for name, value in load.items())
        config.write_text(f"[models.model]\nsource = {json.dumps(source)}\n{options}\n", encoding="utf-8")
        command = ["inference_bridge.cli", "serve", "--no-key", "--preload", "--alias", "model=model"]
        with served(*command, INFERENCE_BRIDGE_CONFIG=str(config)) as (client, _):
            yield client


def client_of(address: str) -> httpx2.Client:
    limits = httpx2.Limits(max_connections=max(CLIENTS))
    return httpx2.Client(base_url=address, trust_env=False, timeout=600, limits=limits)


def streamed(client: httpx2.Client, tokens: int, **fields: Any) -> int:
    """Read one streamed answer. Return the number of its tokens, as the server counts them."""
    body = {"model": "model", "messages": messages(), "max_tokens": tokens, "temperature": 0, "stream": True}
    body |= {"stream_options": {"include_usage": True}} | fields
    count = 0
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {") and (usage := json.loads(line[6:]).get("usage")):
                count = usage["completion_tokens"]
    return count


def rate(ask: Callable[[], int], clients: int) -> Callable[[], float]:
    """Return a measurement of `clients` clients that ask at the same time: tokens per second."""

    def measure() -> float:
        begin = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            got = sum(pool.map(lambda _: ask(), range(clients)))
        return got / (time.perf_counter() - begin)

    return measure


def in_process(model: TextModel, tokens: int) -> int:
    return model.chat(messages(), max_tokens=tokens, temperature=0.0).result().metrics.generated_tokens


def token_cost(client: httpx2.Client, server: psutil.Process, tokens: int) -> float:
    """Return microseconds of the server's processor time per token."""
    before = server.cpu_times()
    got = streamed(client, tokens)
    after = server.cpu_times()
    assert got == tokens, f"{got} tokens came, not {tokens}"
    return (after.user + after.system - before.user - before.system) * 1e6 / tokens


def on_llama_cpp(tokens: int, rounds: int, idle: IdleMachine) -> Iterator[Line]:
    source = f"llama_cpp:{demo_model()}"
    for count in CLIENTS:
        with (
            bridge(source, context_length=LENGTH, parallel_slots=count) as client,
            load_model(source, context_length=LENGTH, parallel_slots=count) as model,
            server(demo_model(), slots=count, length=LENGTH, threads=physical_cores()) as rival,
        ):
            times = take_turns(
                {
                    "http": rate(lambda client=client: streamed(client, tokens), count),  # type: ignore[misc]
                    "here": rate(lambda model=model: in_process(model, tokens), count),  # type: ignore[misc]
                    "llama-server": rate(lambda rival=rival: streamed(rival, tokens), count),  # type: ignore[misc]
                },
                rounds,
                idle,
            )
        work = f"{count} client{'s' if count > 1 else ''}"
        yield compare(work, "in process", 0.97, "tok/s", times["http"], times["here"])
        yield compare(work, "llama-server, as many slots", 1, "tok/s", times["http"], times["llama-server"])


def on_mlx(tokens: int, rounds: int, idle: IdleMachine) -> Iterator[Line]:
    """Compare MLX with a JSON Schema, which costs time per token, with mlx-lm's functions, which have no schemas."""
    with ExitStack() as stack:
        directory = convert(Path(demo_model()), Path(stack.enter_context(tempfile.TemporaryDirectory())) / "smollm2")
        bridged = stack.enter_context(bridge(f"mlx:{directory}", parallel_slots=MLX_CLIENTS))
        mlx_lm_server = stack.enter_context(client_of(stack.enter_context(mlx_server(directory))))
        schema = {"type": "json_schema", "json_schema": {"name": "story", "schema": STORY}}
        times = take_turns(
            {
                "schema": rate(lambda: streamed(bridged, tokens, response_format=schema), MLX_CLIENTS),
                "plain": rate(lambda: streamed(bridged, tokens), MLX_CLIENTS),
                "batch_generate": batch_generate(directory, tokens),
                "mlx_lm.server": rate(lambda: streamed(mlx_lm_server, tokens, model=str(directory)), MLX_CLIENTS),
            },
            rounds,
            idle,
        )
    work = f"mlx, {MLX_CLIENTS} clients"
    yield compare(
        f"{work}, JSON Schema", "batch_generate without", 0.95, "tok/s", times["schema"], times["batch_generate"]
    )
    yield compare(work, "mlx_lm.server", 1, "tok/s", times["plain"], times["mlx_lm.server"])


def batch_generate(directory: Path, tokens: int) -> Callable[[], float]:
    """Return a measurement of mlx-lm's function on the same number of conversations: tokens per second."""
    from mlx_lm import load
    from mlx_lm.generate import batch_generate

    loaded: Any = load(str(directory))
    model, tokenizer = loaded

    def measure() -> float:
        begin = time.perf_counter()
        prompts = [tokenizer.apply_chat_template(messages(), add_generation_prompt=True) for _ in range(MLX_CLIENTS)]
        answered = batch_generate(model, tokenizer, prompts, max_tokens=tokens, return_token_ids=True)
        return sum(len(ids) for ids in answered.token_ids or ()) / (time.perf_counter() - begin)

    return measure


def on_an_instant_model(rounds: int, idle: IdleMachine) -> Iterator[Line]:
    with served("uvicorn", "benchmarks.baselines.instant_app:application") as (client, process):
        costs = take_turns({"cost": lambda: token_cost(client, process, 20_000)}, rounds, idle)["cost"]
    yield compare("server CPU a streamed token", "40 µs", 1, "µs", costs, [40.0] * len(costs), at_most=True)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=7, help="runs of each (default 7, at least 2)")
    options.add_argument("--tokens", type=int, default=64, help="tokens of each answer; on MLX half as many (64)")
    arguments = options.parse_args()
    rounds, idle = 3 if arguments.quick else arguments.rounds, IdleMachine(arguments.idle_wait)
    lines = [
        *on_llama_cpp(arguments.tokens, rounds, idle),
        *on_mlx(arguments.tokens // 2, rounds, idle),
        *on_an_instant_model(rounds, idle),
    ]
    machine = facts("inference-bridge", "starlette", "uvicorn", "llama-cpp-python", "xllamacpp", "mlx", "mlx-lm")
    report(machine, lines, idle, arguments.json)


if __name__ == "__main__":
    main()
