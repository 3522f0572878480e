# SPDX-License-Identifier: Apache-2.0
"""Operations concurrent with close(): each returns its result or raises ModelClosedError (behaviour 11)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, ClassVar

from ...decisions import Choice, Noul
from ...errors import ContextLengthExceededError, ModelClosedError, UnsupportedError
from ...interfaces import EmbeddingModel, RankModel, StatsModel, TokenModel
from ...model import TextModel
from ...streams import AsyncTokenStream, TokenStream
from ...types import BatchResult, Message
from ..base import Contract

_LONG = 200_000
"""Characters of a long prompt. It exceeds every tested context window, and takes milliseconds to tokenize."""

_MANY = 300
"""Number of texts of a long call of embed(), and of messages of a long conversation."""

_READERS = frozenset({"stats", "metrics", "repr"})
"""Operations that also work on a closed model."""

_QUESTIONS: Mapping[str, Choice | Noul] = {
    "same": Noul("Is this a story?"),
    "kind": Choice(["tale", "letter"], "What is it?"),
}

Operations = dict[str, Callable[[], Any]]


class Racing(Contract):
    """Repeats operations in threads or tasks while the model is closed. A crash of the engine ends the test run."""

    behaviours: ClassVar[tuple[int, ...]] = (11,)

    racing_rounds: ClassVar[int] = 2
    """Number of times that a test loads and closes a model. The model is closed at another moment each time."""

    racing_prompt: ClassVar[int] = _LONG
    """Characters of the longest prompt."""

    def test_threads_beside_close(self) -> None:
        for number in range(self.racing_rounds):
            model = self.load()
            operations = self._operations(model)
            ended: set[str] = set()
            closed = threading.Event()
            wrong: list[str] = []

            def run(name: str, work: Callable[[], Any], ended: Any = ended, closed: Any = closed) -> str:
                while True:
                    late = closed.is_set()
                    try:
                        outcome = _judged(name, work(), late)
                    except BaseException as error:
                        outcome = _judged_error(name, error)
                    ended.add(name)
                    if outcome is not None:
                        return outcome

            def note(name: str, work: Callable[[], Any], wrong: Any = wrong, run: Any = run) -> None:
                wrong.append(run(name, work))

            threads = {
                name: threading.Thread(target=note, args=(name, work), name=f"contract-{name}", daemon=True)
                for name, work in operations.items()
            }
            for thread in threads.values():
                thread.start()
            enough, deadline = self._enough(number, operations), time.monotonic() + self.hang_timeout / 4
            while len(ended) < enough and time.monotonic() < deadline:
                time.sleep(0.001)
            self.within(model.close, "close() during operations of other threads")
            closed.set()
            deadline = time.monotonic() + self.hang_timeout
            for name, thread in threads.items():
                thread.join(max(deadline - time.monotonic(), 0.1))
                assert not thread.is_alive(), f"{name} hangs during close()"
            assert [outcome for outcome in wrong if outcome] == []

    def test_tasks_beside_close(self) -> None:
        for number in range(self.racing_rounds):
            self.within(partial(asyncio.run, self._tasks(number)), "tasks during close()")

    async def _tasks(self, number: int) -> None:
        model = self.load()
        operations = self._aoperations(model)
        ended: set[str] = set()
        closed = asyncio.Event()
        enough_ended = asyncio.Event()
        enough = self._enough(number, operations)

        async def run(name: str, work: Callable[[], Awaitable[Any]]) -> str:
            while True:
                late = closed.is_set()
                try:
                    outcome = _judged(name, await work(), late)
                except asyncio.CancelledError:
                    outcome = f"{name}: the caller's own task was cancelled"
                except BaseException as error:
                    outcome = _judged_error(name, error)
                ended.add(name)
                if len(ended) >= enough:
                    enough_ended.set()
                try:  # the task must not be cancelled after the operation has ended, either
                    await asyncio.sleep(0 if outcome is None else 0.01)
                except asyncio.CancelledError:
                    return f"{name}: the caller's own task was cancelled after its answer"
                if outcome is not None:
                    return outcome

        tasks = [asyncio.create_task(run(*item)) for item in operations.items()]
        if enough:
            await asyncio.wait([asyncio.create_task(enough_ended.wait())], timeout=self.hang_timeout / 4)
            enough_ended.set()
        if number % 2:
            await model.aclose()
        else:
            await asyncio.get_running_loop().run_in_executor(None, model.close)
        closed.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [outcome for outcome in outcomes if outcome] == []

    @staticmethod
    def _enough(number: int, operations: Operations) -> int:
        """Return how many operations must have ended before the model is closed: none, half or all of them."""
        return (0, len(operations) // 2, len(operations))[number % 3]

    # ------------------------------------------------ the operations

    def _operations(self, model: TextModel) -> Operations:
        """Return the operations by name, each as a function that runs it once, with a short or a long input."""
        embeds = self._embedder(model)
        long = self._long_prompt(model)
        made: Operations = {"metrics": lambda: model.metrics, "repr": lambda: repr(model)}
        made["count_tokens"] = partial(model.count_tokens, self.prompt)
        made["count_tokens of a long text"] = partial(model.count_tokens, long)
        if isinstance(model, StatsModel):
            made["stats"] = model.stats
        if isinstance(model, TokenModel):
            made["tokenize"] = lambda: model.tokenize(self.prompt, special=True)
            made["detokenize"] = lambda: model.detokenize(model.tokenize(self.prompt))
        if embeds is not None:
            made["embed"] = lambda: embeds.embed([self.prompt] * 3)
            made["embed of many texts"] = lambda: embeds.embed([self.prompt] * _MANY)
        if isinstance(model, RankModel) and "rerank" in model.capabilities:
            made["rerank"] = lambda: model.rerank(self.prompt, [self.prompt, self.question])
            made["rerank of many documents"] = lambda: model.rerank(self.prompt, [self.prompt] * _MANY)
        if not self._generates(model):
            return made
        if "infill" in model.capabilities:
            made["infill"] = lambda: model.infill(self.prompt, self.prompt, max_tokens=2).text()
            made["infill of a long text"] = lambda: model.infill(long, self.prompt, max_tokens=2).text()
            made["infill, half read"] = lambda: next(model.infill(self.prompt, self.prompt, max_tokens=-1), None)
        made["generate"] = lambda: model.generate(self.prompt, max_tokens=2).text()
        made["generate of a long prompt"] = lambda: model.generate(long, max_tokens=2).text()
        made["generate, half read"] = lambda: next(model.generate(self.endless, max_tokens=-1), None)
        made["generate, closed"] = lambda: _half_read(model.generate(self.endless, max_tokens=-1))
        made["batch_generate"] = lambda: model.batch_generate([self.prompt, long, self.prompt], max_tokens=2)
        made["stream_batch"] = lambda: list(model.stream_batch([self.prompt] * 3, max_tokens=2))
        made["classify"] = lambda: model.classify([self.prompt, self.endless])
        made["classify with labels"] = lambda: model.classify([self.prompt], labels=[" a", " the"])
        made["decide"] = lambda: model.decide(self.prompt, _QUESTIONS)
        if self.chats(model):
            if isinstance(model, TokenModel):
                made["count_chat_tokens"] = lambda: model.count_chat_tokens(self.asked())
            made["chat_batch"] = lambda: model.chat_batch([self.asked()] * 3, max_tokens=2)
            made["chat"] = lambda: model.chat(self.asked(), max_tokens=2).text()
            made["chat of many messages"] = lambda: model.chat(self._conversation(), max_tokens=2).text()
        return made

    def _aoperations(self, model: TextModel) -> Operations:
        embeds = self._embedder(model)
        long = self._long_prompt(model)
        made: Operations = {
            "acount_tokens": lambda: model.acount_tokens(self.prompt),
            "acount_tokens of a long text": lambda: model.acount_tokens(long),
        }
        if embeds is not None:
            made["aembed"] = lambda: embeds.aembed([self.prompt] * 3)
            made["aembed of many texts"] = lambda: embeds.aembed([self.prompt] * _MANY)
        if isinstance(model, RankModel) and "rerank" in model.capabilities:
            made["arerank"] = lambda: model.arerank(self.prompt, [self.prompt, self.question])
            made["arerank of many documents"] = lambda: model.arerank(self.prompt, [self.prompt] * _MANY)
        if not self._generates(model):
            return made
        if "infill" in model.capabilities:
            made["ainfill"] = lambda: model.ainfill(self.prompt, self.prompt, max_tokens=2).text()
            made["ainfill of a long text"] = lambda: model.ainfill(long, self.prompt, max_tokens=2).text()
            made["ainfill, half read"] = lambda: anext(model.ainfill(self.prompt, self.prompt, max_tokens=-1), None)

        async def stream_batch() -> list[Any]:
            return [item async for item in model.astream_batch([self.prompt] * 3, max_tokens=2)]

        made["agenerate"] = lambda: model.agenerate(self.prompt, max_tokens=2).text()
        made["agenerate of a long prompt"] = lambda: model.agenerate(long, max_tokens=2).text()
        made["agenerate, half read"] = lambda: anext(model.agenerate(self.endless, max_tokens=-1), None)
        made["abatch_generate"] = lambda: model.abatch_generate([self.prompt, long, self.prompt], max_tokens=2)
        made["astream_batch"] = stream_batch
        made["aclassify"] = lambda: model.aclassify([self.prompt, self.endless])
        made["adecide"] = lambda: model.adecide(self.prompt, _QUESTIONS)
        made["agenerate, closed"] = lambda: _ahalf_read(model.agenerate(self.endless, max_tokens=-1))
        made["agenerate, cancelled"] = lambda: _cancelled(model.agenerate(self.endless, max_tokens=-1).text())
        made["astream_batch, half read"] = lambda: anext(
            aiter(model.astream_batch([self.endless] * 3, max_tokens=-1)), None
        )
        if self.chats(model):
            made["achat_batch"] = lambda: model.achat_batch([self.asked()] * 3, max_tokens=2)
            made["achat"] = lambda: model.achat(self.asked(), max_tokens=2).text()
            made["achat of many messages"] = lambda: model.achat(self._conversation(), max_tokens=2).text()
        return made

    def _long_prompt(self, model: TextModel) -> str:
        """Return a prompt that takes long to tokenize.

        For a wrapped model it is shorter: such a model raises another type of error if a prompt exceeds its context.
        """
        length = min(self.racing_prompt, 400) if model.wrapped else self.racing_prompt
        return f"{self.prompt} " * (length // (len(self.prompt) + 1))

    def _conversation(self) -> list[Message]:
        return [Message("user" if place % 2 == 0 else "assistant", self.question) for place in range(_MANY + 1)]

    def _generates(self, model: TextModel) -> bool:
        try:
            model.generate(self.prompt, max_tokens=1)
        except UnsupportedError:
            return False
        return True

    @staticmethod
    def _embedder(model: TextModel) -> EmbeddingModel | None:
        return model if isinstance(model, EmbeddingModel) else None


def _half_read(stream: TokenStream) -> None:
    with stream:
        next(stream, None)


async def _ahalf_read(stream: AsyncTokenStream) -> None:
    async with stream:
        await anext(stream, None)


async def _cancelled(operation: Coroutine[Any, Any, Any]) -> None:
    """Await an operation in a task, and cancel the task before the operation ends."""
    task = asyncio.create_task(operation)
    await asyncio.sleep(0.002)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        if not task.cancelled():
            raise


# ---------------------------------------------------------------- results of an operation


def _judged(name: str, result: Any, late: bool) -> str | None:
    """Judge the result of an operation.

    Args:
        name: The operation's name.
        result: Its result.
        late: Whether the model was closed before the operation began.

    Returns:
        None: repeat the operation. "": it ended correctly. Otherwise what is wrong.
    """
    if isinstance(result, list):
        for one in result:
            if isinstance(one, BatchResult) and one.error is not None:
                outcome = _judged_error(name, one.error)
                if outcome is not None:
                    return outcome
    if "count_tokens" in name and not (type(result) is int and result > 0):
        return f"{name} returned {result!r}"
    if not late:
        return None
    return "" if name in _READERS else f"{name} returned a result after close()"


def _judged_error(name: str, error: BaseException) -> str | None:
    """Judge the error that an operation raised. See `_judged` for the result."""
    if isinstance(error, ModelClosedError | UnsupportedError):
        return ""
    if isinstance(error, ContextLengthExceededError):
        return None
    return f"{name} raised {type(error).__name__}: {error}"
