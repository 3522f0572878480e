# SPDX-License-Identifier: Apache-2.0
"""Load on two real llama-servers of one model, of which one is killed, stopped, and started again.

    python -m tests.parts.servers.restarts --streams 64

prints what became of the calls: how many were answered, how many broke off after they had begun, and how many were lost
before. The exit status is 1 where one was lost.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from inference_bridge import ServerError, TextModel, load_model

from ..models.contract_models import DEMO_MODEL
from ..models.tiny import until
from ..models.tiny_gguf import write_llama
from .processes import Restartable

TOKENS = 6


@contextmanager
def pair(model: Path | str) -> Iterator[tuple[Restartable, Restartable]]:
    """Two servers of the model."""
    servers: list[Restartable] = []
    try:
        servers += [Restartable(model), Restartable(model)]
        yield servers[0], servers[1]
    finally:
        for server in servers:
            server.close()


class Load:
    """Threads, each of which asks again and again until the load is stopped.

    Attributes:
        answered: How many answers have come.
        broken: Errors of answers that had begun.
        lost: Errors of calls that had not begun.
    """

    def __init__(self, model: TextModel, streams: int) -> None:
        self.answered = 0
        self.broken: list[ServerError] = []
        self.lost: list[BaseException] = []
        self._model = model
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(streams)]

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
        """Wait until the given number of further requests are answered."""
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


def until_failures(model: TextModel, index: int, failed: bool, load: Load) -> None:
    """Wait until the server is left out, or takes part again."""
    servers = model._pool.balance._servers  # type: ignore[attr-defined]
    until(lambda: (servers[index].failures > 0) is failed or bool(load.lost))


def killed(streams: int, model_file: Path | str = DEMO_MODEL) -> Load:
    """One server is killed under load and started again; then the other one is killed for good."""
    with pair(model_file) as (one, other), load_model(f"{one.address},{other.address}") as model:
        with Load(model, streams) as load:
            load.more(streams)
            one.signal(signal.SIGKILL)
            load.more(2 * streams)
            one.close()
            one.start()
            until_failures(model, 0, False, load)
            load.more(2 * streams)
            other.signal(signal.SIGKILL)
            load.more(streams)
        return load


def stopped(streams: int, silence: float, model_file: Path | str) -> Load:
    """One server is stopped under load, so that it holds its connections and answers nothing, and goes on later.

    `silence`: seconds until a server that hangs is left; far more than the model takes to begin.
    """
    with (
        pair(model_file) as (one, other),
        load_model(f"{one.address},{other.address}", first_token_timeout=silence) as model,
    ):
        with Load(model, streams) as load:
            load.more(streams)
            other.signal(signal.SIGSTOP)
            until_failures(model, 1, True, load)
            load.more(2 * streams)
            other.signal(signal.SIGCONT)
            until_failures(model, 1, False, load)
            load.more(streams)
        return load


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill, stop and start again one of two llama-servers under load.")
    parser.add_argument("--streams", type=int, default=64, help="calls at the same time (default 64)")
    parser.add_argument("--model", help="a GGUF file (default: a tiny random model)")
    parser.add_argument("--silence", type=float, default=30, help="seconds until a server that hangs is left")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        tiny = write_llama(Path(directory, "tiny.gguf"), 512)
        model = asked.model or tiny
        loads = {
            "killed": lambda: killed(asked.streams, model),
            "stopped": lambda: stopped(asked.streams, asked.silence, model),
        }
        return max([_told(name, asked.streams, run) for name, run in loads.items()])


def _told(name: str, streams: int, run: Callable[[], Load]) -> int:
    """Print the outcomes of the calls. Return 1 if one was lost."""
    begin = time.monotonic()
    load = run()
    counts = f"{load.answered} answered, {len(load.broken)} broke off after they had begun, {len(load.lost)} lost"
    sys.stdout.write(f"{name}, {streams} streams: {counts} ({time.monotonic() - begin:.0f} s)\n")
    for error in load.lost[:3]:
        sys.stdout.write(f"  {error!r}\n")
    sys.stdout.flush()
    return int(bool(load.lost))


if __name__ == "__main__":
    sys.exit(main())
