# SPDX-License-Identifier: Apache-2.0
"""Two real llama-servers under load, of which one is killed, stopped, and started again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inference_bridge import ServerError, TextModel, load_model

from ....parts.contract_models import DEMO_MODEL
from ....parts.servers import Restartable
from ....parts.tiny import until
from ....parts.tiny_gguf import write_llama

pytestmark = pytest.mark.slow

STREAMS = 8
TOKENS = 6
PATIENCE = 8
"""Seconds until a server that hangs is left: far more than the tiny model takes to begin."""


@contextmanager
def pair(model: Path | str) -> Iterator[tuple[Restartable, Restartable]]:
    servers: list[Restartable] = []
    try:
        servers += [Restartable(model), Restartable(model)]
        yield servers[0], servers[1]
    finally:
        for server in servers:
            server.close()


class Load:
    """`STREAMS` threads, each of which asks again and again until the load is stopped."""

    def __init__(self, model: TextModel) -> None:
        self.answered = 0
        self.broken: list[ServerError] = []
        """Errors of answers that had begun."""
        self.lost: list[BaseException] = []
        self._model = model
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(STREAMS)]

    def _ask(self, number: int) -> None:
        turn = 0
        while not self._over.is_set():
            turn += 1
            messages = [{"role": "user", "content": f"Count from {number} to {turn}."}]
            try:
                result = self._model.chat(messages, max_tokens=TOKENS).result()
            except ServerError as error:
                begun = error.partial is not None and bool(error.partial.tokens)
                with self._lock:
                    (self.broken if begun else self.lost).append(error)
            except BaseException as error:
                self.lost.append(error)
            else:
                with self._lock:
                    self.answered += bool(result.tokens)

    def more(self, count: int) -> None:
        """Wait until so many more are answered."""
        goal = self.answered + count
        until(lambda: self.answered >= goal or bool(self.lost))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_no_answer_that_has_not_begun_is_lost_where_a_server_is_killed() -> None:
    with pair(DEMO_MODEL) as (one, other), load_model(f"{one.address},{other.address}") as model:
        with Load(model) as load:
            load.more(STREAMS)
            one.signal(signal.SIGKILL)
            load.more(2 * STREAMS)
            one.close()
            one.start()
            load.more(3 * STREAMS)
        assert load.lost == []
        assert len(load.broken) <= STREAMS, "only what had begun when the server was killed"
        other.signal(signal.SIGKILL)  # now the one that was started again is the only one
        assert model.chat([{"role": "user", "content": "Hello"}], max_tokens=TOKENS).result().tokens


def test_no_answer_is_lost_where_a_server_hangs(tmp_path: Path) -> None:
    """It holds its connections, and answers nothing. What had begun stalls; what had not begins elsewhere."""
    tiny = write_llama(tmp_path / "tiny.gguf", 512)
    with (
        pair(tiny) as (one, other),
        load_model(f"{one.address},{other.address}", first_token_timeout=PATIENCE) as model,
    ):
        with Load(model) as load:
            load.more(STREAMS)
            other.signal(signal.SIGSTOP)
            balance = model._pool.balance  # type: ignore[attr-defined]
            until(lambda: balance._servers[1].failures > 0 or bool(load.lost))
            load.more(2 * STREAMS)
            other.signal(signal.SIGCONT)
            until(lambda: balance._servers[1].failures == 0 or bool(load.lost))
        assert load.lost == []
        assert len(load.broken) <= STREAMS
