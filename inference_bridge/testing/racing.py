# SPDX-License-Identifier: Apache-2.0
"""Every operation beside close(): each gives its result, or raises ModelClosedError (behaviour 11)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import pytest

from ..errors import ContextLengthExceededError, ModelClosedError, UnsupportedError
from ..model import EmbeddingModel, StatsModel, TextModel
from ..types import BatchResult, ClassifyResult
from .base import Contract

_LONG = 200_000
"""Characters of a long input: more than any context of a test, and some milliseconds of tokenizing."""


class Racing(Contract):
    """A crash of the process is caught by that: it ends the test run."""

    behaviours: ClassVar[tuple[int, ...]] = (11,)

    racing_rounds: ClassVar[int] = 3
    """How often a model is loaded, worked on and closed in each test."""

    @pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
    def test_threads_beside_close(self, long: bool) -> None:
        for number in range(self.racing_rounds):
            model = self.load()
            works = self._works(model, long)
            wrong: list[str] = []
            done = {name: threading.Event() for name in works}

            def run(name: str, work: Callable[[], Any], done: Any = done, wrong: Any = wrong) -> None:
                outcome: str | None = None
                while outcome is None:
                    outcome = self._outcome(name, work)
                    done[name].set()
                if outcome:
                    wrong.append(outcome)

            threads = [threading.Thread(target=run, args=item, daemon=True) for item in works.items()]
            for thread in threads:
                thread.start()
            self._moment(number, lambda done=done: sum(event.is_set() for event in done.values()), len(works))
            self.within(model.close, "close() beside operations of other threads")
            deadline = time.monotonic() + self.patience
            for name, thread in zip(works, threads, strict=True):
                thread.join(max(deadline - time.monotonic(), 0.1))
                assert not thread.is_alive(), f"{name} hangs beside close()"
            assert wrong == []

    @pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
    def test_tasks_beside_close(self, long: bool) -> None:
        for number in range(self.racing_rounds):
            self.within(lambda number=number: asyncio.run(self._tasks(number, long)), "tasks beside close()")

    async def _tasks(self, number: int, long: bool) -> None:
        model = self.load()
        works = self._aworks(model, long)
        ended: set[str] = set()

        async def run(name: str, work: Callable[[], Awaitable[Any]]) -> str:
            while True:
                try:
                    outcome = self._judged(name, await work())
                except asyncio.CancelledError:
                    outcome = f"{name}: the caller's own task was cancelled"
                except BaseException as error:
                    outcome = self._judged_error(name, error)
                ended.add(name)
                if outcome is not None:
                    # A task of the caller's may be cancelled after its answer has come, too.
                    try:
                        await asyncio.sleep(0.01)
                    except asyncio.CancelledError:
                        return f"{name}: the caller's own task was cancelled after the end"
                    return outcome
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(run(*item)) for item in works.items()]
        enough = (0, 1, len(works))[number % 3]
        begun = time.monotonic()
        while len(ended) < enough and time.monotonic() - begun < self.patience / 4:
            await asyncio.sleep(0.001)
        if number % 2:
            await asyncio.get_running_loop().run_in_executor(None, model.close)
        else:
            await model.aclose()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [outcome for outcome in outcomes if outcome] == []

    # ------------------------------------------------ what runs beside it

    def _works(self, model: TextModel, long: bool) -> dict[str, Callable[[], Any]]:
        """Each operation of the model, as a function that does it once."""
        text = self._text(long)
        options: dict[str, Any] = {"max_tokens": 2}
        works: dict[str, Callable[[], Any]] = {}
        if self._generates(model):
            works["generate"] = lambda: model.generate(text, **options).text()
            works["half of generate"] = lambda: next(model.generate(self.endless, max_tokens=-1), None)
            works["batch_generate"] = lambda: model.batch_generate([text, self.prompt], **options)
            works["stream_batch"] = lambda: list(model.stream_batch([self.prompt, text], **options))
            works["classify"] = lambda: model.classify([text])
            works["metrics"] = lambda: model.metrics and repr(model)
        if self.chats(model):
            works["chat"] = lambda: model.chat(self.asked(text), **options).text()
        works["count_tokens"] = lambda: model.count_tokens(text)
        if isinstance(model, StatsModel):
            works["stats"] = model.stats
        if isinstance(model, EmbeddingModel):
            works["embed"] = lambda: model.embed([self.prompt] * (500 if long else 3))
        return works

    def _aworks(self, model: TextModel, long: bool) -> dict[str, Callable[[], Awaitable[Any]]]:
        text = self._text(long)
        options: dict[str, Any] = {"max_tokens": 2}
        works: dict[str, Callable[[], Awaitable[Any]]] = {}
        if self._generates(model):
            works["agenerate"] = lambda: model.agenerate(text, **options).text()
            works["half of agenerate"] = lambda: anext(model.agenerate(self.endless, max_tokens=-1), None)
            works["abatch_generate"] = lambda: model.abatch_generate([text, self.prompt], **options)
            works["aclassify"] = lambda: model.aclassify([text])
        if self.chats(model):
            works["achat"] = lambda: model.achat(self.asked(text), **options).text()
        works["acount_tokens"] = lambda: model.acount_tokens(text)
        if isinstance(model, EmbeddingModel):
            works["aembed"] = lambda: model.aembed([self.prompt] * (500 if long else 3))
        return works

    def _text(self, long: bool) -> str:
        return f"{self.prompt} " * (_LONG // (len(self.prompt) + 1)) if long else self.prompt

    def _generates(self, model: TextModel) -> bool:
        try:
            model.generate(self.prompt, max_tokens=1)
        except UnsupportedError:
            return False
        return True

    def _moment(self, number: int, ended: Callable[[], int], count: int) -> None:
        """Wait for another moment in each round: at once, once one operation has ended, and once each has."""
        enough = (0, 1, count)[number % 3]
        deadline = time.monotonic() + self.patience / 4  # where the long ones take longer, some have ended
        while ended() < enough and time.monotonic() < deadline:
            time.sleep(0.001)

    # ------------------------------------------------ what came of it

    def _outcome(self, name: str, work: Callable[[], Any]) -> str | None:
        """None: go on. "": it ended as it should. Else what was wrong."""
        try:
            return self._judged(name, work())
        except BaseException as error:
            return self._judged_error(name, error)

    def _judged(self, name: str, result: Any) -> str | None:
        if isinstance(result, list):
            for one in result:
                if isinstance(one, BatchResult) and one.error is not None:
                    return self._judged_error(name, one.error)
                if isinstance(one, ClassifyResult) and not isinstance(one.token.text, str):
                    return f"{name} gave {one!r}"
        if name.endswith("count_tokens") and not (type(result) is int and result > 0):
            return f"{name} gave {result!r}"
        return None

    def _judged_error(self, name: str, error: BaseException) -> str | None:
        if isinstance(error, ModelClosedError | UnsupportedError):
            return ""
        if isinstance(error, ContextLengthExceededError):
            return None
        return f"{name} raised {type(error).__name__}: {error}"
