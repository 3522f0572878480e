# SPDX-License-Identifier: Apache-2.0
"""llama-server, the C++ program, out of the xllamacpp wheel: `python server.py MODEL PORT SLOTS LENGTH THREADS`."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

HOST = "127.0.0.1"


class LlamaServer:
    """A server in a child process, with as many slots as it has callers here."""

    def __init__(self, path: str, *, slots: int, length: int, threads: int) -> None:
        import httpx2

        with socket.socket() as free:
            free.bind((HOST, 0))
            port = free.getsockname()[1]
        arguments = [path, str(port), str(slots), str(length), str(threads)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._client = httpx2.Client(base_url=f"http://{HOST}:{port}", timeout=300, trust_env=False)
        self._callers = ThreadPoolExecutor(slots)
        for _ in range(200):
            try:
                if self._client.get("/health").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.1)
        raise RuntimeError("llama-server did not start")

    def generate(self, prompts: Sequence[str], count: int) -> int:
        """Continue the prompts at once, greedily; how many tokens came of it."""

        def ask(prompt: str) -> int:
            body: dict[str, Any] = {"prompt": prompt, "n_predict": count, "temperature": 0, "cache_prompt": False}
            answer = self._client.post("/completion", json=body).raise_for_status().json()
            return int(answer["tokens_predicted"])

        return sum(self._callers.map(ask, prompts))

    def close(self) -> None:
        self._callers.shutdown()
        self._client.close()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def serve(path: str, port: str, slots: str, length: str, threads: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.hostnames = [HOST]
    params.port = int(port)
    params.n_parallel = int(slots)
    params.n_ctx = int(slots) * int(length)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    server = xllamacpp.Server(params)
    signal.pause()
    del server


if __name__ == "__main__":
    serve(*sys.argv[1:])
