# SPDX-License-Identifier: Apache-2.0
"""llama-server in a separate process: the C++ server of the xllamacpp wheel.

Run it as a program with the arguments MODEL SOCKET SLOTS CONTEXT THREADS. It prints a line when it listens on the UNIX
socket, and ends when its standard input ends.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2

from tests.parts.servers.processes import running


@contextmanager
def server(path: str, *, slots: int, length: int, threads: int) -> Iterator[httpx2.Client]:
    """Run a llama-server with `slots` slots of `length` tokens and defaults otherwise, and yield a client for it."""
    with tempfile.TemporaryDirectory() as directory:
        socket = os.path.join(directory, "llama.sock")  # by the ending, the server knows that it is not a host name
        options = [str(slots), str(slots * length), str(threads)]
        with running("benchmarks.baselines.server", path, socket, *options):
            # The server closes a connection after a stream.
            once = httpx2.HTTPTransport(uds=socket, limits=httpx2.Limits(max_keepalive_connections=0))
            with httpx2.Client(transport=once, base_url="http://llama-server", timeout=600) as client:
                yield client


def complete(client: httpx2.Client, prompt: str, count: int) -> int:
    """Stream a greedy completion of at most `count` tokens, and read each. Return the number of tokens."""
    text, received = [], 0
    for event in _events(client, prompt, count):
        text.append(event["content"])
        received = event["tokens_predicted"]
    return received


def _events(client: httpx2.Client, prompt: str, count: int) -> Iterator[dict[str, Any]]:
    """Yield the events of a greedy completion; the request ends with the iterator."""
    body = {"prompt": prompt, "n_predict": count, "temperature": 0, "stream": True}
    with client.stream("POST", "/completion", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])


def first_token(client: httpx2.Client, prompts: Sequence[str]) -> float:
    """Return the seconds to the first token of the last prompt while the streams of the others are decoded."""
    over = threading.Event()
    begun = [threading.Event() for _ in prompts[:-1]]

    def read(prompt: str, event: threading.Event) -> None:
        for _ in _events(client, prompt, -1):
            event.set()
            if over.is_set():
                return

    with ThreadPoolExecutor(len(begun)) as pool:
        reading = [pool.submit(read, prompt, event) for prompt, event in zip(prompts[:-1], begun, strict=True)]
        for event in begun:
            event.wait()
        asked = time.perf_counter()
        next(_events(client, prompts[-1], 1))
        seconds = time.perf_counter() - asked
        over.set()
        for one in reading:
            one.result()
    return seconds


def main() -> None:
    import xllamacpp

    path, socket, slots, context, threads = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_parallel = int(slots)
    params.n_ctx = int(context)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.hostnames = [socket]
    params.verbosity = 0
    started = xllamacpp.Server(params)
    print(started.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
