# SPDX-License-Identifier: Apache-2.0
"""A call that is interrupted by close() in its own thread, at each of its lines in turn.

So does a signal handler, and a finalizer that the garbage collector runs. What the call holds at that line, a lock
perhaps, it holds until the interruption is over, which must not wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest

from inference_bridge import ModelInfo
from inference_bridge.engine.model import EngineModel
from inference_bridge.engine.scheduler import Sampled
from inference_bridge.engine.worker import Worker
from inference_bridge.errors import GenerationError, ModelClosedError
from inference_bridge.model import TextModel
from inference_bridge.streams import TokenStream

from ..parts.interrupting import interrupted
from ..parts.models.scripted_engine import ByteTokenizer, ScriptedEngine


class Model(EngineModel):
    """A scripted model without chats."""

    backend = "scripted"
    model_type = "scripted"
    info = ModelInfo("scripted", context_length=ScriptedEngine.context_length)

    def __init__(self, engine: ScriptedEngine | None = None) -> None:
        self.engine = engine or ScriptedEngine()
        super().__init__(self.engine, Worker("scripted-worker"), ByteTokenizer(), None)


async def read(model: TextModel) -> str:
    return await model.agenerate("ab", max_tokens=2).text()


async def counted(model: TextModel) -> int:
    return await model.acount_tokens("ab" * 4000)


def close_half_read(stream: TokenStream) -> None:
    next(stream)
    stream.close()


OPERATIONS: dict[str, Callable[[Model], Any]] = {
    "generate": lambda model: model.generate("ab", max_tokens=2).text(),
    "generate of a long text": lambda model: model.generate("ab" * 4000, max_tokens=1).text(),
    "batch": lambda model: [result.text for result in model.batch_generate(["ab", "cd"], max_tokens=1)],
    "classify": lambda model: len(model.classify(["ab"])),
    "decide": lambda model: len(model.decide("ab", {"x": {"type": "noul", "instructions": "?"}}).answers),
    "agenerate": lambda model: asyncio.run(read(model)),
    "acount_tokens of a long text": lambda model: asyncio.run(counted(model)),
    "stream, closed": lambda model: close_half_read(model.generate("abcdef", max_tokens=6)),
    "call of the worker": lambda model: model._worker.call(lambda: 1),
    "stats": lambda model: model.stats().operations,
    "count_tokens": lambda model: model.count_tokens("ab"),
    "close": lambda model: model.close(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_close_at_each_line(name: str) -> None:
    operation = OPERATIONS[name]
    whole = Model()
    expected = operation(whole)
    whole.close()
    line = 0
    while True:
        model = Model()
        outcome = interrupted(partial(operation, model), model.close, line)
        if outcome.error is None:
            assert outcome.result == expected, outcome.where
        else:
            assert isinstance(outcome.error, ModelClosedError), (outcome.where, outcome.error)
        model.close()
        model._worker.stop()
        assert model.engine.closed, outcome.where
        if not outcome.reached:
            break
        line += 1
    assert line > 2


class Finalized:
    """Does something when it is freed."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def __del__(self) -> None:
        self.act()


class FreeingEngine(ScriptedEngine):
    """Something is freed in the midst of its step, in the worker's thread, as by the garbage collector."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Finalized] = []
        self.freed_in_use = False

    def step(self) -> Iterable[Sampled]:
        if self.held:
            self.held.clear()
            self.freed_in_use = self.closed
        return super().step()


@pytest.mark.parametrize("action", ["close", "generate"])
def test_a_finalizer_in_the_workers_thread(action: str) -> None:
    engine = FreeingEngine()
    model = Model(engine)
    raised: list[BaseException] = []

    def act() -> None:
        try:
            if action == "close":
                model.close()
            else:
                model.generate("ab").text()
        except BaseException as error:
            raised.append(error)

    engine.held.append(Finalized(act))
    if action == "close":
        with pytest.raises(ModelClosedError):
            model.generate("ab", max_tokens=2).text()
        model._worker._ended.wait(20)
        assert engine.closed
        assert raised == []
    else:
        assert model.generate("ab", max_tokens=2).text() == "ab"
        assert [type(error) for error in raised] == [GenerationError]
    assert not engine.freed_in_use
    model.close()
