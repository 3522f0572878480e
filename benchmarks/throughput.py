# SPDX-License-Identifier: Apache-2.0
"""Measure tokens per second of many streams on a vLLM server: http backend, openai client, and `vllm bench serve`.

    SERVER_KEY=… python -m benchmarks.throughput http://127.0.0.1:8000 [--bench /venv/bin/vllm]

They send the same kind of prompts and ask for the same number of tokens (`ignore_eos`), in turns. The processor time
is the client's, per token; its ratio also holds on a busy machine. `--bench` runs vLLM's own benchmark with the same
number of requests. Its figure is taken from its report, so it does not include the start of the program.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.report import IdleMachine, compare, facts, parser, report, take_turns
from inference_bridge import TextModel, load_model

Figures = tuple[float, float]
"""Tokens per second, and microseconds of the client's processor time per token (0: not measured)."""

IGNORE_END: Mapping[str, Any] = {"ignore_eos": True}


class Prompts:
    """Makes prompts with different beginnings, so that no server finds one in its prefix cache."""

    def __init__(self) -> None:
        self._made = 0

    def next(self, count: int) -> list[str]:
        self._made += count
        return [f"{number} is the number of a story. Once upon a time there was a" for number in range(self._made)][
            -count:
        ]


def timed(work: Callable[[], int]) -> Callable[[], Figures]:
    """Return a measurement of `work`, which returns the number of tokens it read."""

    def measure() -> Figures:
        begin, used = time.perf_counter(), time.process_time()
        read = work()
        spent, taken = time.process_time() - used, time.perf_counter() - begin
        return read / taken, spent * 1e6 / read

    return measure


def in_threads(model: TextModel, prompts: Prompts, streams: int, tokens: int) -> int:
    read: list[int] = []

    def one(prompt: str) -> None:
        read.append(model.generate(prompt, max_tokens=tokens).result().metrics.generated_tokens)

    threads = [threading.Thread(target=one, args=(prompt,)) for prompt in prompts.next(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(read)


def in_tasks(model: TextModel, prompts: Prompts, streams: int, tokens: int) -> int:
    async def one(prompt: str) -> int:
        return (await model.agenerate(prompt, max_tokens=tokens).result()).metrics.generated_tokens

    async def main() -> int:
        return sum(await asyncio.gather(*map(one, prompts.next(streams))))

    return asyncio.run(main())


def in_a_batch(model: TextModel, prompts: Prompts, streams: int, tokens: int) -> int:
    results = model.batch_generate(prompts.next(streams), max_tokens=tokens)
    return sum(result.metrics.generated_tokens for result in results)


def of_openai(address: str, name: str, key: str, prompts: Prompts, streams: int, tokens: int) -> int:
    openai = import_module("openai")

    async def main() -> int:
        async with openai.AsyncOpenAI(base_url=address + "/v1", api_key=key, max_retries=0, timeout=3600) as client:

            async def one(prompt: str) -> int:
                usage = {"include_usage": True}
                options = {"max_tokens": tokens, "temperature": 0, "stream": True, "stream_options": usage}
                events = await client.completions.create(
                    model=name, prompt=prompt, extra_body=dict(IGNORE_END), **options
                )
                count = 0
                async for event in events:
                    if event.usage:
                        count = event.usage.completion_tokens
                return count

            return sum(await asyncio.gather(*map(one, prompts.next(streams))))

    return asyncio.run(main())


def of_vllm(program: Path, address: str, name: str, model: str, key: str, streams: int, tokens: int) -> Figures:
    """Return the output tokens per second that `vllm bench serve` reports."""
    with tempfile.TemporaryDirectory() as directory:
        words = (
            f"bench serve --base-url {address} --served-model-name {name} --model {model} --endpoint /v1/completions"
        )
        words += f" --dataset-name random --random-input-len 16 --random-output-len {tokens} --num-prompts {streams}"
        words += f" --ignore-eos --temperature 0 --save-result --result-dir {directory} --result-filename result.json"
        environment = {**os.environ, "OPENAI_API_KEY": key, "HF_HUB_OFFLINE": "1"}
        subprocess.run([str(program), *words.split()], check=True, capture_output=True, env=environment)
        told = json.loads(Path(directory, "result.json").read_text(encoding="utf-8"))
    return float(told["output_throughput"]), 0.0


def main() -> None:
    options = parser(__doc__)
    options.add_argument("server", help="the server's address; its key is in SERVER_KEY")
    options.add_argument("--streams", default="1,8,32,64", help="numbers of streams (default 1,8,32,64)")
    options.add_argument("--rounds", type=int, default=7, help="runs of each (default 7, at least 2)")
    options.add_argument("--tokens", type=int, default=64, help="tokens of each answer (default 64)")
    options.add_argument("--bench", type=Path, metavar="PROGRAM", help="vLLM's own program, to compare with too")
    asked = options.parse_args()
    rounds, idle = 3 if asked.quick else asked.rounds, IdleMachine(asked.idle_wait)
    key, prompts, lines = os.environ.get("SERVER_KEY") or "none", Prompts(), []
    with load_model(asked.server, api_key=key, extra=IGNORE_END) as model:
        served = model.connection().client().get(asked.server + "/v1/models").json()["data"][0]  # type: ignore[attr-defined]
        name = served["id"]
        for streams in map(int, asked.streams.split(",")):
            work = {"streams, threads": in_threads, "streams, async": in_tasks, "batch": in_a_batch}
            rivals = {way: timed(partial(run, model, prompts, streams, asked.tokens)) for way, run in work.items()}
            openai = partial(of_openai, asked.server, name, key, prompts, streams, asked.tokens)
            rivals["openai"] = timed(openai)
            if asked.bench is not None:
                root = served.get("root") or name
                rivals["vllm"] = partial(of_vllm, asked.bench, asked.server, name, root, key, streams, asked.tokens)
            figures = take_turns(rivals, rounds, idle)
            speed = {way: [one for one, _ in each] for way, each in figures.items()}
            cost = {way: [one for _, one in each] for way, each in figures.items()}
            for way in work:
                for rival, against in (("openai", "openai, async"), ("vllm", "vllm bench serve")):
                    if rival in speed:
                        lines.append(compare(f"{streams} {way}", against, 1.0, "tok/s", speed[way], speed[rival]))
                lines.append(
                    compare(
                        f"{streams} {way}: client's time a token",
                        "openai, async",
                        1 / 3,
                        "µs",
                        cost[way],
                        cost["openai"],
                        at_most=True,
                    )
                )
    report(facts("inference-bridge", "httpx2", "openai"), lines, idle, asked.json)


if __name__ == "__main__":
    main()
