# SPDX-License-Identifier: Apache-2.0
"""An engine whose prompts determine its answers and its failures.

A token is a byte. A prompt's text is repeated after it; a prompt with FAULTY in it meets the fault.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from inference_bridge import Message, ModelInfo
from inference_bridge.chat.templates.template import ChatTemplate
from inference_bridge.engine.model import EngineModel
from inference_bridge.engine.scheduler import Sampled, Sequence
from inference_bridge.engine.special_tokens import Shield
from inference_bridge.engine.worker import Worker
from inference_bridge.grammar.grammar import Vocabulary

FAULTY = "!"
END = 256

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}<tool_call>\n<function={{ call.function.name }}>\n"
    "{% for name, value in call.function.arguments.items() %}<parameter={{ name }}>\n{{ value }}\n</parameter>\n"
    "{% endfor %}</function>\n</tool_call>{% endfor %}{% endif %}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}assistant: "
)


class Panic(BaseException):
    """The exception of a panic in a Rust library, which is not a subclass of Exception."""


class ScriptedEngine:
    """A StepEngine.

    Args:
        fault: Raises, for a sequence whose prompt is faulty.
        where: The method in which it is called: "admit", "token", "release", "memory", "is_end", "piece", "idle",
            "step".
    """

    slots = 2
    context_length = 10_000
    vocabulary: Vocabulary | None = None

    def __init__(self, where: str = "", fault: Callable[[], None] = lambda: None) -> None:
        self._where = where
        self._fault = fault
        self._sequences: list[Sequence] = []
        self.closed = False

    def _meet(self, where: str) -> None:
        if where == self._where and any(_is_faulty(sequence) for sequence in self._sequences):
            self._fault()

    @property
    def idle(self) -> bool:
        self._meet("idle")
        return False

    def admit(self, sequence: Sequence) -> bool:
        sequence.slot = object()
        self._sequences.append(sequence)
        if _is_faulty(sequence):
            self._meet("admit")
        return True

    def step(self) -> Iterable[Sampled]:
        time.sleep(0.0005)  # so that callers have their turns
        self._meet("step")
        return [self._next(sequence) for sequence in self._sequences]

    def _next(self, sequence: Sequence) -> Sampled:
        if _is_faulty(sequence) and self._where == "token":
            try:
                self._fault()
            except Exception as error:
                return Sampled(sequence, error=error)
        said = sequence.tokens[len(sequence.prompt) :]
        script = sequence.prompt
        token = script[len(said)] if len(said) < len(script) else END
        if sequence.on_logits is not None:
            logits = np.zeros(END + 1, np.float32)
            logits[token] = 1
            sequence.on_logits(logits)
        return Sampled(sequence, token)

    def release(self, sequence: Sequence) -> None:
        try:
            if _is_faulty(sequence):
                self._meet("release")
        finally:
            self._sequences.remove(sequence)

    def is_end(self, token: int) -> bool:
        if token == ord(FAULTY):
            self._meet("is_end")
        return token == END

    def piece(self, token: int, special: bool) -> bytes:
        if token == ord(FAULTY):
            self._meet("piece")
        return bytes([token]) if token < END else b""

    def memory(self) -> tuple[int, int]:
        self._meet("memory")
        return 1, 1

    def tidy(self) -> bool:
        self._meet("tidy")
        return False

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def _is_faulty(sequence: Sequence) -> bool:
    return ord(FAULTY) in sequence.prompt


class ByteTokenizer:
    """A token is a byte, and no token is special."""

    shield = Shield(())

    def encode(self, text: str, *, special: bool, check: Callable[[], None] = lambda: None) -> list[int]:
        return list(text.encode())

    def encode_rendered(self, text: str, mark: str = "", check: Callable[[], None] = lambda: None) -> list[int]:
        return list(text.encode())

    def fewest(self, text: str) -> int:
        return len(text)

    def __contains__(self, text: object) -> bool:
        return False


class ScriptedModel(EngineModel):
    """A model on a ScriptedEngine, which repeats its prompts."""

    backend = "scripted"
    model_type = "scripted"
    info = ModelInfo("scripted", context_length=ScriptedEngine.context_length)

    def __init__(self, engine: ScriptedEngine) -> None:
        super().__init__(engine, Worker("scripted-worker"), ByteTokenizer(), ChatTemplate(TEMPLATE))


def call_of(name: str, parameter: str) -> list[Message]:
    """A conversation that the model repeats, and so makes a tagged call."""
    text = f"<tool_call>\n<function={name}>\n<parameter={parameter}>\n1\n</parameter>\n</function>\n</tool_call>"
    return [Message("user", text)]


def raising(error: BaseException) -> Callable[..., Any]:
    """A function that raises `error`."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail
