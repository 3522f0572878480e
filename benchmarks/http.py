# SPDX-License-Identifier: Apache-2.0
"""Measure the http backend's cost per streamed token, on a server that answers at once.

It is compared with the minimum that a client must do (httpx2's lines and json.loads), and with the openai client if
that is installed. Figures are microseconds of the client's processor time per token.

Also measure what `keep_alive` saves: the time from loading a model to its first token, without and with a
llama-server that an earlier load left running.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import httpx2

from benchmarks.baselines.instant_server import instant_server
from benchmarks.engine import demo_model
from benchmarks.report import IdleMachine, compare, facts, parser, report, take_turns
from inference_bridge import load_model
from inference_bridge.backends.warm import control

MESSAGES = [{"role": "user", "content": "Say something."}]


def timed(stream: Callable[[], int], tokens: int) -> Callable[[], float]:
    """Return a measurement of `stream`, which returns the number of tokens it read: microseconds per token."""

    def measure() -> float:
        begin = time.process_time()
        read = stream()
        spent = time.process_time() - begin
        assert read == tokens, f"{read} tokens came, not {tokens}"
        return spent * 1e6 / tokens

    return measure


def bare(client: httpx2.Client, path: str, body: dict[str, object]) -> Callable[[], int]:
    """Return the minimal client: it parses each line and reads each text."""

    def read() -> int:
        count = 0
        with client.stream("POST", path, json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if "choices" in event:
                        choices = event["choices"]
                        text = choices[0]["delta"].get("content") if choices else None
                    else:
                        text = event["content"]
                    if text:
                        count += 1
        return count

    return read


async def bare_chat(address: str) -> int:
    """Read an answer as `bare` does, asynchronously, with a new client, because a client belongs to an event loop."""
    count = 0
    body = {"messages": MESSAGES, "stream": True}
    async with (
        httpx2.AsyncClient(base_url=address, trust_env=False, timeout=60) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0]["delta"].get("content"):
                    count += 1
    return count


def openai_chat(address: str) -> Callable[[], int]:
    client: Any = import_module("openai").OpenAI(base_url=address + "/v1", api_key="none", max_retries=0)

    def read() -> int:
        events = client.chat.completions.create(model="instant", messages=MESSAGES, stream=True)
        return sum(1 for event in events if event.choices and event.choices[0].delta.content)

    return read


def first_tokens() -> tuple[float, float]:
    """Return milliseconds from `load_model` to the first token, with a new server and with the same one, kept warm."""

    def measure() -> float:
        begin = time.perf_counter()
        with load_model(f"llama_server:{demo_model()}", context_length=1024, keep_alive=60) as model:
            next(model.generate("Once upon a time", max_tokens=4))
            return (time.perf_counter() - begin) * 1000

    before = {kept.id for kept in control.models()}
    both = measure(), measure()
    for kept in control.models():
        if kept.id not in before:
            control.stop(kept.id)
    return both


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=15, help="runs of each (default 15, at least 2)")
    options.add_argument("--tokens", type=int, default=2000, help="tokens of each answer (default 2000)")
    arguments = options.parse_args()
    tokens: int = arguments.tokens
    rounds, idle = 5 if arguments.quick else arguments.rounds, IdleMachine(arguments.idle_wait)

    with (
        instant_server(tokens) as address,
        httpx2.Client(base_url=address, trust_env=False, timeout=60) as client,
        load_model(address) as model,
        asyncio.Runner() as runner,
    ):

        async def achat() -> int:
            return len([token async for token in model.achat(MESSAGES, max_tokens=-1)])

        chat = {"messages": MESSAGES, "stream": True}
        rivals = {
            "chat: bare httpx2": bare(client, "/v1/chat/completions", chat),
            "chat: http backend": lambda: sum(1 for _ in model.chat(MESSAGES, max_tokens=-1)),
            "chat, async: bare httpx2": lambda: runner.run(bare_chat(address)),
            "chat, async: http backend": lambda: runner.run(achat()),
            "generate: bare httpx2": bare(client, "/completion", {"prompt": "Say", "stream": True}),
            "generate: http backend": lambda: sum(1 for _ in model.generate("Say", max_tokens=-1)),
        }
        if find_spec("openai") is not None:
            rivals["chat: openai"] = openai_chat(address)
        times = take_turns({name: timed(stream, tokens) for name, stream in rivals.items()}, rounds, idle)

    lines = []
    for way in ("chat", "chat, async", "generate"):
        runs, base = times[f"{way}: http backend"], times[f"{way}: bare httpx2"]
        lines.append(compare(f"{way}: a token's cost", "bare httpx2", 2.5, "µs", runs, base, at_most=True))
    if "chat: openai" in times:
        runs, base = times["chat: openai"], times["chat: http backend"]
        lines.append(compare("openai's client: a token's cost", "the http backend", 10, "µs", runs, base))

    first, second = zip(*take_turns({"both": first_tokens}, 3 if arguments.quick else 5, idle)["both"], strict=True)
    work, against = "keep_alive: load to first token, again", "the first time"
    lines.append(compare(work, against, 0.3, "ms", second, first, at_most=True))

    machine = facts("inference-bridge", "httpx2", "openai", "xllamacpp")
    report(machine, lines, idle, arguments.json)


if __name__ == "__main__":
    main()
