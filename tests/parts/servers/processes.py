# SPDX-License-Identifier: Apache-2.0
"""Real servers in separate processes, for tests and benchmarks.

Run as a program, `python -m tests.parts.servers.processes KIND …`, it is such a server: it prints its address and
ends with its standard input. A key comes by the environment, as it never may in arguments.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
KEY = "a-key-for-tests-0123456789"


@contextmanager
def running(module: str, *arguments: str, **environment: str) -> Iterator[str]:
    """The line in which a server, the program `module`, says that it listens; it has ended when the block has."""
    process, line = _started(module, *arguments, **environment)
    try:
        yield line
    finally:
        _end(process)


def _started(module: str, *arguments: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the server logs much; it reports an error when it exits
        env=os.environ | environment,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        _end(process)
        raise RuntimeError(f"the server did not start: {module}, exit code {process.returncode}")
    return process, line


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


class Restartable:
    """A llama-server that can be killed and started again at the same address."""

    def __init__(self, model: Path | str, *, slots: int = 4, length: int = 512) -> None:
        self._arguments = (model, slots, length)
        self.address = ""
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        model, slots, length = self._arguments
        port = int(self.address.rpartition(":")[2] or 0)
        self._process, self.address = _started(
            "tests.parts.servers.processes",
            "llama",
            str(model),
            _described(slots=slots, length=length, port=port),
            SERVER_KEY="",
        )

    def signal(self, number: int) -> None:
        """Send the process a signal, and wait for its end if that is SIGKILL."""
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait(10)

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
            _end(process)


@contextmanager
def _known(kind: str, *arguments: str, key: str | None = None) -> Iterator[str]:
    """The address of one of those below."""
    with running(
        "tests.parts.servers.processes", kind, *arguments, PYTHONWARNINGS="ignore", SERVER_KEY=key or ""
    ) as address:
        yield address


@contextmanager
def llama_server(
    model: Path | str,
    *,
    slots: int = 2,
    length: int = 512,
    key: str | None = None,
    embedding: bool = False,
    ranks: bool = False,
    template: str = "",
    exact: bool = False,
    projector: Path | str = "",
) -> Iterator[str]:
    """llama-server, as the xllamacpp wheel carries it. `exact`: flash attention off, a context to each slot."""
    described = _described(
        slots=slots,
        length=length,
        embedding=embedding or ranks,
        ranks=ranks,
        template=template,
        exact=exact,
        projector=str(projector),
    )
    with _known("llama", str(model), described, key=key) as address:
        yield address


def _described(**options: Any) -> str:
    plain = {"embedding": False, "ranks": False, "template": "", "exact": False, "projector": "", "port": 0}
    return json.dumps(plain | options)


@contextmanager
def llama_cpp_server(model: Path | str, *, length: int = 512, key: str | None = None) -> Iterator[str]:
    """llama_cpp.server, of llama-cpp-python."""
    with _known("llama_cpp", str(model), str(length), key=key) as address:
        yield address


@contextmanager
def mlx_server(model: Path | str) -> Iterator[str]:
    """mlx_lm.server."""
    with _known("mlx", str(model)) as address:
        yield address


def _llama(model: str, described: str) -> None:
    import xllamacpp

    options = json.loads(described)
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.mmproj.path = options["projector"]
    params.n_parallel = options["slots"]
    params.n_ctx = options["slots"] * options["length"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames = ["127.0.0.1"]
    params.port = options["port"]
    params.endpoint_slots = True
    params.warmup = False
    params.verbosity = 0
    params.embedding = options["embedding"]
    if options["ranks"]:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    if options["template"]:
        params.chat_template = options["template"]
    # For options that a request does not set: the contract's defaults.
    params.sampling.temp = 0.0
    params.sampling.top_k = 0
    params.sampling.top_p = 1.0
    params.sampling.min_p = 0.0
    if options["exact"]:
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.kv_unified = False
        params.no_extra_bufts = True
    if os.environ["SERVER_KEY"]:
        params.api_keys = [os.environ["SERVER_KEY"]]
    started = xllamacpp.Server(params)
    print(started.listening_address, flush=True)
    sys.stdin.read()


def _llama_cpp(model: str, length: str) -> None:
    import uvicorn
    from llama_cpp.server.app import create_app
    from llama_cpp.server.settings import ModelSettings, ServerSettings

    settings = ServerSettings(api_key=os.environ["SERVER_KEY"] or None, interrupt_requests=False)
    loaded = ModelSettings(model=model, n_ctx=int(length), n_threads=1, logits_all=True, verbose=False)
    app = create_app(server_settings=settings, model_settings=[loaded])
    listening = socket.create_server(("127.0.0.1", 0))
    # asyncio does so for sockets of its own: without it each answer waits 40 ms for an acknowledgement
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    threading.Thread(target=server.run, args=([listening],), daemon=True).start()
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    sys.stdin.read()
    os._exit(0)


def _mlx(model: str) -> None:
    from http.server import ThreadingHTTPServer

    import mlx_lm.server

    class Announced(ThreadingHTTPServer):
        def server_activate(self) -> None:
            super().server_activate()
            print(f"http://127.0.0.1:{self.server_port}", flush=True)

    mlx_lm.server._run_http_server.__defaults__ = (Announced, mlx_lm.server.APIHandler)
    sys.argv[1:] = ["--model", model, "--host", "127.0.0.1", "--port", "0", "--log-level", "CRITICAL"]
    threading.Thread(target=_until_the_end, daemon=True).start()
    run: Any = mlx_lm.server.main
    run()


def _until_the_end() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    servers: dict[str, Callable[..., None]] = {"llama": _llama, "llama_cpp": _llama_cpp, "mlx": _mlx}
    servers[sys.argv[1]](*sys.argv[2:])
