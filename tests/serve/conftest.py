# SPDX-License-Identifier: Apache-2.0
"""A server in a thread of the test process, on a free port."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

import inference_bridge as ib

from ..parts.models.contract_models import DEMO_MODEL

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

Serving = Callable[..., str]


@pytest.fixture(scope="module")
def model() -> Iterator[ib.TextModel]:
    """The real small model."""
    # deterministic: tests compare answers, and what a request finds in the prefix cache depends on those before it
    with ib.load_model(DEMO_MODEL, context_length=512, parallel_slots=2, deterministic=True) as model:
        yield model


@contextmanager
def running(models: Any, *, head_seconds: float = 20.0, **options: Any) -> Iterator[str]:
    from inference_bridge.serve import app
    from inference_bridge.serve.connections import bounded

    listener = socket.create_server(("127.0.0.1", 0))
    # asyncio does so for sockets of its own: without it each answer waits 40 ms for an acknowledgement
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        app(models, **options), http=bounded(head_seconds), log_level="critical", timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture
def serving() -> Iterator[Serving]:
    """Serves models, as `app` takes them, until the test ends. Returns the server's address."""
    with ExitStack() as stack:
        yield lambda models, **options: stack.enter_context(running(models, **options))
