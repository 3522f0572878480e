# SPDX-License-Identifier: Apache-2.0
"""A fault ends the sequence that it belongs to, and no other: planted at each point of a scripted engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from inference_bridge import GenerateConfig, GenerationError, Message, Token, Tool
from inference_bridge._concurrency.mailbox import Mailbox
from inference_bridge.chat.assembler import TextAssembler
from inference_bridge.engine import scheduler as scheduler_module
from inference_bridge.engine.scheduler import Sampling, Scheduler, Sequence
from inference_bridge.engine.worker import Worker
from inference_bridge.request import Request

from ..parts.models.scripted_engine import FAULTY, Panic, ScriptedEngine, ScriptedModel, raising

pytestmark = pytest.mark.usefixtures("no_thread_stays")

NEIGHBOUR = "to the end of the line " * 20
OWN = f"so far{FAULTY}"
ERRORS = [ValueError("planted"), Panic("planted")]
EACH_ERROR = pytest.mark.parametrize("error", ERRORS, ids=["Exception", "BaseException"])


def sequence_of(prompt: str, **parts: Any) -> tuple[Sequence, Mailbox[Token]]:
    """A sequence without a model around it, and where its tokens go."""
    box: Mailbox[Token] = Mailbox()
    made = Sequence(
        request=Request("generate", GenerateConfig()),
        prompt=list(prompt.encode()),
        sampling=Sampling(),
        output=parts.pop("output", TextAssembler()),
        sink=parts.pop("sink", box),
        max_tokens=-1,
        stop_tokens=frozenset(),
        **parts,
    )
    made.request.begin()
    return made, box


def text_of(box: Mailbox[Token]) -> str:
    return "".join(token.text for token in box)


# An engine hands out an Exception as a sequence's error ("token"), and never another BaseException.
@pytest.mark.parametrize(
    ("where", "error"),
    [
        (where, error)
        for where in ("admit", "token", "piece", "is_end")
        for error in ERRORS
        if where != "token" or isinstance(error, Exception)
    ],
)
def test_a_fault_of_the_engine_with_one_sequence(where: str, error: BaseException) -> None:
    with ScriptedModel(ScriptedEngine(where, raising(error))) as model:
        neighbour = model.generate(NEIGHBOUR, max_tokens=-1)
        next(neighbour)
        with pytest.raises(GenerationError, match="planted") as raised:
            model.generate(OWN, max_tokens=-1).text()
        assert raised.value.partial is not None
        assert raised.value.partial.text == ("so far" if where in ("piece", "is_end") else "")
        assert neighbour.text() == NEIGHBOUR
        assert model.generate("once more", max_tokens=-1).text() == "once more"


@EACH_ERROR
@pytest.mark.parametrize("where", ["release", "memory"])
def test_a_fault_that_does_not_affect_the_answer(
    where: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "MEMORY_INTERVAL", -1.0)
    with ScriptedModel(ScriptedEngine(where, raising(error))) as model:
        neighbour = model.generate(NEIGHBOUR, max_tokens=-1)
        next(neighbour)
        assert model.generate(OWN, max_tokens=-1).text() == OWN
        assert neighbour.text() == NEIGHBOUR
        assert not model.closed


@EACH_ERROR
@pytest.mark.parametrize("where", ["step", "idle"])
def test_a_fault_of_a_whole_step_leaves_the_model_usable(where: str, error: BaseException) -> None:
    with ScriptedModel(ScriptedEngine(where, raising(error))) as model:
        with pytest.raises(GenerationError, match="planted"):
            model.generate(OWN, max_tokens=-1).text()
        assert model.generate(NEIGHBOUR, max_tokens=-1).text() == NEIGHBOUR


class _Raises:
    """Like `of`, but for one attribute."""

    def __init__(self, of: Any, name: str, error: BaseException, *, is_property: bool) -> None:
        self._of, self._name, self._error, self._is_property = of, name, error, is_property

    def __getattr__(self, name: str) -> Any:
        if name != self._name:
            return getattr(self._of, name)
        if self._is_property:
            raise self._error
        return raising(self._error)


class _Free:
    """A constraint that allows every token."""

    finished = complete = shortened = False


def _parts(what: str, name: str, error: BaseException) -> dict[str, Any]:
    of: Callable[[], Any] = {"output": TextAssembler, "sink": Mailbox, "constraint": _Free}[what]
    is_property = what == "constraint" or name == "stopped"
    return {what: _Raises(of(), name, error, is_property=is_property)}


@EACH_ERROR
@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("output", "push"),
        ("output", "finish"),
        ("output", "stopped"),
        ("sink", "put"),
        ("sink", "close"),
        ("constraint", "finished"),
        ("constraint", "shortened"),
    ],
)
def test_a_fault_of_one_sequence_does_not_affect_others(what: str, name: str, error: BaseException) -> None:
    worker = Worker("test-worker")
    engine = ScriptedEngine()
    scheduler = Scheduler(engine, worker)
    neighbour, box = sequence_of(NEIGHBOUR)
    faulty, own = sequence_of("say", **_parts(what, name, error))
    for sequence in (neighbour, faulty):
        scheduler.submit(sequence)
    if what != "sink":
        with pytest.raises((ValueError, GenerationError), match="planted"):
            text_of(own)
    assert text_of(box) == NEIGHBOUR
    assert scheduler.load == (0, 0)
    after, box = sequence_of("after")
    scheduler.submit(after)
    assert text_of(box) == "after"
    worker.remove(scheduler)
    assert engine.closed


def test_closing_goes_on_behind_a_sink_that_fails() -> None:
    worker = Worker("test-worker")
    engine = ScriptedEngine()
    scheduler = Scheduler(engine, worker)
    faulty, _ = sequence_of("say " * 2000, **_parts("sink", "close", ValueError("planted")))
    neighbour, box = sequence_of(NEIGHBOUR * 10)
    for sequence in (faulty, neighbour):
        scheduler.submit(sequence)
    next(box)
    worker.remove(scheduler)
    assert engine.closed
    with pytest.raises(Exception, match="closed"):
        text_of(box)


@pytest.mark.parametrize("keyword", ["anyOf", "properties", "required", "type", "enum"])
def test_a_malformed_tool_is_refused_at_the_call(keyword: str) -> None:
    malformed = Tool("f", "", {"type": "object", "properties": {"x": {keyword: 7}}})
    with ScriptedModel(ScriptedEngine()) as model:
        neighbour = model.generate(NEIGHBOUR, max_tokens=-1)
        next(neighbour)
        with pytest.raises(ValueError, match=f"'f'.*x.*{keyword}"):
            model.chat([Message("user", "hi")], tools=[malformed])
        assert neighbour.text() == NEIGHBOUR
