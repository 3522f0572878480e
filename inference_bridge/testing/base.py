# SPDX-License-Identifier: Apache-2.0
"""The base class of all groups of tests: the model, and the properties that its author states."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary

import pytest

from ..errors import UnsupportedError
from ..loading import load_model
from ..model import TextModel
from ..types import GenerateResult, Message, Tool
from .callers import Async, Sync

T = TypeVar("T")

_CAPABILITY_OF = {
    "json_schema": "json_schema",
    "tools": "tools",
    "tool_choice": "tools",
    "logprobs": "logprobs",
    "reasoning": "reasoning",
    "return_logits": "logits",
}
"""Options that belong to a capability. The others are listed in the model's `options`."""


class Contract:
    """Base of all groups of tests. Set `source`, or define `load`. The other defaults suit most models."""

    source: ClassVar[str] = ""
    """The source for `load_model`. A context of about 500 tokens keeps the tests fast."""
    load_options: ClassVar[Mapping[str, Any]] = {}

    prompt: ClassVar[str] = "Once upon a time there was"
    """A prompt whose greedy continuation has at least `length` tokens, some of them with several characters."""
    length: ClassVar[int] = 12
    """Number of tokens that most tests generate."""
    room: ClassVar[int] = 200
    """Maximum number of tokens of JSON and tool calls with a few words."""
    endless: ClassVar[str] = "Count: 1, 2, 3,"
    """A prompt whose continuation is as long as possible."""
    repetitive: ClassVar[str] = "a b a b a b a b a b a b"
    """A prompt whose greedy continuation repeats it, so that penalties change the continuation."""
    question: ClassVar[str] = "What is the capital of France?"
    """A question for conversations."""
    characters: ClassVar[str] = "na\u00efve \u65e5\u672c\u8a9e \U0001f389\U0001f44b\U0001f3fd \u0645\u0631"
    """Text of characters that take several bytes, and of some that take several code points."""
    penalties: ClassVar[Mapping[str, float]] = {
        "repeat_penalty": 5.0,
        "presence_penalty": 50.0,
        "frequency_penalty": 50.0,
    }
    """Values that keep the model from repeating itself, as large as its engine accepts."""
    temperature: ClassVar[float] = 1.0
    """A temperature at which different seeds give different texts."""
    tolerance: ClassVar[float] = 0.0
    """How much other streams and reused prefixes may change a logit or a log probability. Up to 0.01, greedy texts must
    be equal. With a larger tolerance, they may differ where two tokens are almost equally likely."""
    raw: ClassVar[bool] = True
    """Whether `generate` continues the prompt as it is. False: a wrapped chat model sends the prompt as a user's
    message."""
    reuses_prefixes: ClassVar[bool] = True
    """Whether the next turn of a conversation evaluates only new tokens, because the engine keeps the common prefix."""
    lists_ids: ClassVar[bool] = True
    """Whether the alternatives in `top_logprobs` have ids, if the tokens have ids."""
    lasting_threads: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of threads that may outlive the model, such as a thread of the whole process."""
    hang_timeout: ClassVar[float] = 30.0
    """Seconds after which an operation counts as hanging."""

    behaviours: ClassVar[tuple[int, ...]] = ()
    """The numbers of the contract's eleven behaviours that a group of tests checks."""

    @classmethod
    def load(cls) -> TextModel:
        """Return a new model. It is called several times, also in other processes, so it must not use fixtures."""
        if not cls.source:
            pytest.fail(f"{cls.__name__} needs a source, or a load() of its own")
        return load_model(cls.source, **cls.load_options)

    @classmethod
    def program(cls) -> str:
        """Return the beginning of a Python program that loads the model as `model`."""
        if cls.load.__func__ is Contract.load.__func__:  # type: ignore[attr-defined]
            return f"""
from inference_bridge import load_model
def load():
    return load_model({cls.source!r}, **{dict(cls.load_options)!r})
model = load()
"""
        return f"""
from importlib import import_module
suite = import_module({cls.__module__!r})
for name in {cls.__qualname__!r}.split("."):
    suite = getattr(suite, name)
suite.source = {cls.source!r}  # as a fixture may have set it
load = suite.load
model = load()
"""

    # ------------------------------------------------ fixtures

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls) -> Iterator[TextModel]:
        """The model that the tests of a class share."""
        with cls.load() as model:
            yield model

    @pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
    def caller(self, request: pytest.FixtureRequest) -> Iterator[Sync]:
        """Call the model by its sync methods in one run, by its async methods in another."""
        caller: Sync = request.param()
        yield caller
        caller.end()

    # ------------------------------------------------ what a model supports

    @staticmethod
    def honours(model: TextModel, option: str) -> bool:
        """Return whether the model says that it supports the option."""
        capability = _CAPABILITY_OF.get(option)
        if capability is not None:
            return capability in model.capabilities
        return option in model.options or option in ("max_tokens", "timeout", "n")

    def honoured(self, model: TextModel, call: Callable[..., Any], option: str, value: Any) -> bool:
        """Return whether the option is supported. If not, `call` with it must raise an error that names it."""
        if self.honours(model, option):
            return True
        with pytest.raises(UnsupportedError) as refused:
            call(**{option: value})
        self.check_refusal(model, refused.value, option)
        return False

    @staticmethod
    def check_refusal(model: TextModel, error: UnsupportedError, feature: str) -> None:
        assert feature in error.feature, f"the error names {error.feature!r}, but {feature!r} was requested"
        assert feature in str(error)
        assert error.backend in str(error)
        assert error.backend == model.backend

    @staticmethod
    def chats(model: TextModel) -> bool:
        return "chat" in model.capabilities

    # ------------------------------------------------ what tests ask

    @property
    def repeats(self) -> bool:
        """Whether greedy text is the same each time."""
        return self.tolerance <= 0.01

    def greedily(self, model: TextModel, **options: Any) -> dict[str, Any]:
        """Return options for greedy text. If the model does not support a temperature, none is set."""
        asked: dict[str, Any] = {"max_tokens": self.length}
        if self.honours(model, "temperature"):
            asked["temperature"] = 0.0
        return asked | options

    def alone(self, model: TextModel, prompt: str | None = None, **options: Any) -> GenerateResult:
        """Return the greedy continuation of the prompt when nothing else runs. It is generated once and cached."""
        known = _known.setdefault(model, {})
        key = (self.prompt if prompt is None else prompt, repr(options))
        if key not in known:
            known[key] = model.generate(key[0], **self.greedily(model, **options)).result()
        result = known[key]
        if prompt is None and "max_tokens" not in options:
            assert len([token for token in result.tokens if token.text]) >= 6, (
                f"{self.prompt!r} is continued with {result.text!r} alone: set `prompt` to one that leads further"
            )
        return result

    def slots(self, model: TextModel) -> int:
        """Number of operations that a test runs at once to fill the model, within limits."""
        return max(1, min(model.parallel, 8))

    def prompts(self, count: int) -> list[str]:
        """Return different prompts, each longer than the one before."""
        return [f"{self.prompt} {number}" + " and" * number for number in range(count)]

    def asked(self, content: str | None = None) -> list[Message]:
        """Return a conversation with one question."""
        return [Message("user", self.question if content is None else content)]

    tool: ClassVar[Tool] = Tool(
        "magic_function",
        "Applies a magic function to an input.",
        {"type": "object", "properties": {"input": {"type": "integer"}}, "required": ["input"]},
    )
    schema: ClassVar[Mapping[str, Any]] = {
        "title": "answer",
        "type": "object",
        "properties": {"answer": {"enum": ["yes", "no"]}},
        "required": ["answer"],
        "additionalProperties": False,
    }

    # ------------------------------------------------ time

    def within(self, work: Callable[[], T], what: str) -> T:
        """Run `work` in a thread and return its result. The test fails if it takes longer than `hang_timeout`."""
        outcome: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                outcome.append(work())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=run, name="contract-within", daemon=True)
        thread.start()
        thread.join(self.hang_timeout)
        if thread.is_alive():
            pytest.fail(f"after {self.hang_timeout} s it still hangs: {what}")
        if failure:
            raise failure[0]
        return outcome[0]

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until another thread has made the condition true."""
        deadline = time.monotonic() + self.hang_timeout
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"after {self.hang_timeout} s it has not happened: {what}")
            time.sleep(0.001)

    def is_free(self, model: TextModel) -> None:
        """Check that nothing holds the model: as many operations as it has slots end, started together."""

        def run() -> None:
            streams = [model.generate(self.prompt, max_tokens=1) for _ in range(self.slots(model))]
            for stream in streams:
                next(stream, None)
            for stream in streams:
                stream.result()

        self.within(run, "an operation that should have found a free slot")


_known: WeakKeyDictionary[TextModel, dict[tuple[str, str], GenerateResult]] = WeakKeyDictionary()


class Begun:
    """Counts the operations that a model begins while the block runs."""

    _NAMES = ("_run", "_arun", "_start", "_astart", "_begin")

    def __init__(self, model: TextModel) -> None:
        self._model = model
        self.count = 0

    def __enter__(self) -> Begun:
        for name in self._NAMES:
            self._watch(name, getattr(self._model, name))
        return self

    def _watch(self, name: str, method: Callable[..., Any]) -> None:
        def counted(*args: Any) -> Any:
            self.count += 1
            return method(*args)

        setattr(self._model, name, counted)

    def __exit__(self, *_: object) -> None:
        for name in self._NAMES:
            delattr(self._model, name)


def only(tokens: Sequence[Any], kind: str) -> str:
    return "".join(token.text for token in tokens if token.kind == kind)
