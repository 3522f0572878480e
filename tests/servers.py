# SPDX-License-Identifier: Apache-2.0
"""Real servers in processes of their own, for tests.

Run as a program, `python servers.py KIND …`, it is such a server: it prints its address and
ends with its standard input. A key comes by the environment, as it never may in arguments.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEY = "a-key-for-tests-0123456789"


@contextmanager
def running(*arguments: str, key: str | None = None) -> Iterator[str]:
    """The address of a server started with `arguments`; it has ended when the block has."""
    command = [sys.executable, __file__, *arguments]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "SERVER_KEY": key or ""}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"the server {arguments[0]} did not start (exit code {process.wait(10)})")
        yield address
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@contextmanager
def llama_server(
    model: Path | str, *, slots: int = 2, length: int = 512, key: str | None = None, embedding: bool = False
) -> Iterator[str]:
    """llama-server, as the xllamacpp wheel carries it; greedy where a request does not say how to sample."""
    with running("llama", str(model), str(slots), str(length), str(int(embedding)), key=key) as address:
        yield address


def _llama(model: str, slots: str, length: str, embedding: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_parallel = int(slots)
    params.n_ctx = int(slots) * int(length)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.endpoint_slots = True
    params.warmup = False
    params.verbosity = 0
    if os.environ["SERVER_KEY"]:
        params.api_keys = [os.environ["SERVER_KEY"]]
    if embedding == "1":
        params.embedding = True
    running = xllamacpp.Server(params)
    print(running.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    {"llama": _llama}[sys.argv[1]](*sys.argv[2:])
