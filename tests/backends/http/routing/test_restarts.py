# SPDX-License-Identifier: Apache-2.0
"""Two real llama-servers under load, of which one is killed, stopped, and started again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from inference_bridge import ServerError, TextModel, load_model

from ....parts.contract_models import DEMO_MODEL
from ....parts.servers import Restartable
from ....parts.tiny import until

pytestmark = pytest.mark.slow

STREAMS = 16
TOKENS = 6


@pytest.fixture
def pair() -> Iterator[tuple[Restartable, Restartable]]:
    servers: list[Restartable] = []
    try:
        servers += [Restartable(DEMO_MODEL), Restartable(DEMO_MODEL)]
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


def test_no_answer_that_has_not_begun_is_lost(pair: tuple[Restartable, Restartable]) -> None:
    one, other = pair
    with load_model(f"{one.address},{other.address}", first_token_timeout=10) as model:
        with Load(model) as load:
            load.more(STREAMS)
            one.signal(signal.SIGKILL)
            load.more(2 * STREAMS)
            one.close()
            one.start()
            load.more(2 * STREAMS)
            other.signal(signal.SIGSTOP)  # it holds its connections, and answers nothing
            load.more(2 * STREAMS)
            other.signal(signal.SIGCONT)
            load.more(2 * STREAMS)
        assert load.lost == []
        assert len(load.broken) <= 2 * STREAMS
        one.signal(signal.SIGKILL)  # and what was stopped takes part again
        assert model.chat([{"role": "user", "content": "Hello"}], max_tokens=TOKENS).result().tokens
