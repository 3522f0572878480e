# SPDX-License-Identifier: Apache-2.0
"""Many callers, one engine: queue, fairness, streams, limits and metrics of every request.

The interface of an engine is small: it admits a sequence to a slot, makes a step for all
admitted ones, and releases. It is only ever called from its worker's thread.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from .._concurrency.mailbox import Sink
from ..chat.assembler import Output
from ..errors import GenerationError, ModelClosedError
from ..grammar.grammar import Vocabulary
from ..options import GenerateConfig
from ..request import Request
from ..types import FinishReason, Token, TopLogprob
from .worker import Worker

_log = logging.getLogger(__name__)

MEMORY_INTERVAL = 0.05
"""Seconds that what was measured of the process's memory holds."""


LOWEST_TEMPERATURE = 1e-6
"""Below it a token is the likeliest one, but for ties; dividing by less overflows 32-bit floats."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose a token. A stage that is off has its neutral value: 0, or 1 for top_p and repeat_penalty."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logprobs: int = 0

    @classmethod
    def of(cls, config: GenerateConfig) -> Sampling:
        """What `config` asks for; a zero top_p or repeat_penalty means off."""
        temperature = config.temperature or 0.0
        return cls(
            temperature=temperature if temperature >= LOWEST_TEMPERATURE else 0.0,
            top_k=config.top_k or 0,
            top_p=config.top_p or 1.0,
            min_p=config.min_p or 0.0,
            repeat_penalty=config.repeat_penalty or 1.0,
            presence_penalty=config.presence_penalty or 0.0,
            frequency_penalty=config.frequency_penalty or 0.0,
            seed=config.seed,
            logprobs=config.logprobs or 0,
        )

    @property
    def penalised(self) -> bool:
        return self.repeat_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


class Constraint(Protocol):
    """What a sequence may say: see `engine.grammar`. Used in the worker's thread alone."""

    @property
    def finished(self) -> bool:
        """Whether the text is complete, and nothing may follow."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        ...

    @property
    def shortened(self) -> bool:
        """Whether the limit of tokens kept the model from what it would have chosen."""
        ...

    def mask(self, logits: Any) -> None:
        """Set the logits (float32, vocab_size) of the tokens that may not come next to -inf, in place."""
        ...

    def fits(self, token: int) -> bool:
        """Whether the text can be completed within the limit of tokens behind this one."""
        ...

    def exclude(self, token: int, logits: Any) -> None:
        """Set the logit of a token that does not fit to -inf, in place. After several, only one that fits is left."""
        ...

    def accept(self, token: int) -> None:
        """Go on with the token that was chosen."""
        ...


@dataclass(eq=False, slots=True)
class Sequence:
    """One request on its way through the engine."""

    request: Request
    prompt: list[int]
    sampling: Sampling
    output: Output
    sink: Sink[Token]
    max_tokens: int
    """-1: until the context is full."""
    stop_tokens: frozenset[int]
    constraint: Constraint | None = None
    forced_call: bool = False
    """Whether the answer must be a tool call: what is cut off is an error then, and its markup not text."""
    on_logits: Callable[[Any], None] | None = None
    """Called in the worker's thread with the logits (float32, vocab_size) of the only token, before any constraint:
    `max_tokens` is 1."""
    media: Mapping[int, Any] = field(default_factory=dict)
    """What is no text in the prompt, by where it begins there, in order: the engine's own. Its tokens are negative."""
    special: bool = False
    """Whether special tokens are rendered: markup of a chat's output may be made of them."""
    tokens: list[int] = field(default_factory=list)
    """Prompt and generated tokens, in order."""
    generated: int = 0
    prefill_seconds: float = 0.0
    cached_tokens: int = 0
    slot: Any = None
    """The engine's own."""
    first_token_at: float = 0.0
    peak_memory: int = 0


class Sampled(NamedTuple):
    """What a step brought one sequence: a token, or the error that ends it."""

    sequence: Sequence
    token: int = -1
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    error: Exception | None = None


class StepEngine(Protocol):
    """The interface of an engine. Every method is called in the worker's thread."""

    slots: int
    context_length: int
    vocabulary: Vocabulary | None
    """For grammars; None if there can be none. Closed with the engine."""

    @property
    def idle(self) -> bool:
        """Whether all that is admitted waits for what the engine has under way elsewhere, which wakes the worker."""
        ...

    def admit(self, sequence: Sequence) -> bool:
        """Give the sequence a slot and what can be reused of its prompt. False: not beside those that have one,
        keep it waiting."""
        ...

    def step(self) -> Iterable[Sampled]:
        """Evaluate a chunk of a prompt, or decode one token for every sequence that is past its prompt."""
        ...

    def release(self, sequence: Sequence) -> None:
        """Free the slot of a sequence that has ended, or was never finished."""
        ...

    def is_end(self, token: int) -> bool:
        """Whether the model ends its text with this token."""
        ...

    def piece(self, token: int, special: bool) -> bytes:
        """The token's bytes; `special`: those of special tokens too."""
        ...

    def tidy(self) -> bool:
        """Do a piece of the work that can wait until no sequence is admitted. True: there is more of it."""
        ...

    def memory(self) -> tuple[int, int]:
        """Bytes in use, and the most that were lately: of the process, or of the device the engine is on."""
        ...

    def interrupt(self) -> None:
        """Make a step under way fail soon; from any thread; never undone."""
        ...

    def close(self) -> None: ...


class Scheduler:
    """Admits sequences in the order they came, as slots come free, and hands out what they bring."""

    def __init__(self, engine: StepEngine, worker: Worker) -> None:
        self._engine = engine
        self._worker = worker
        self._waiting: deque[Sequence] = deque()
        self._active: list[Sequence] = []
        self._arrived: deque[Sequence] = deque()  # appended to and popped from by different threads
        self._cancelled: deque[Sequence] = deque()
        self._closed = False
        self._memory = (0, 0)
        self._memory_at = -math.inf
        worker.add(self)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence and return at once; its tokens and its end go to its sink."""

        def cancel() -> None:
            sequence.sink.close()  # the consumer need not wait for the step under way
            self._cancelled.append(sequence)
            self._worker.wake()

        sequence.request.on_cancel(cancel)
        self._arrived.append(sequence)
        if self._closed:  # closed meanwhile: the queue is not read again
            sequence.sink.close(ModelClosedError("the model is closed: load it again"))
        self._worker.wake()

    def interrupt(self) -> None:
        self._closed = True
        self._engine.interrupt()

    def close(self, exiting: bool) -> None:
        self._closed = True
        self._waiting.extend(self._arrived)
        try:
            for sequence in [*self._active, *self._waiting]:
                if not exiting:
                    with contextlib.suppress(BaseException):  # a sink of somebody's own
                        sequence.sink.close(ModelClosedError("the model was closed while it generated"))
            self._active.clear()
            self._waiting.clear()
        finally:
            self._engine.close()

    @property
    def load(self) -> tuple[int, int]:
        """How many sequences are in a slot, and how many wait: a snapshot."""
        return len(self._active), len(self._waiting) + len(self._arrived)

    # ------------------------------------------------ the worker's turn

    def turn(self) -> bool:
        while self._arrived:
            self._waiting.append(self._arrived.popleft())
        self._drop_cancelled()
        self._check_deadlines()
        self._admit()
        if not self._active:
            return bool(self._waiting) or self._tidy()
        try:
            if self._engine.idle:
                return False
            sampled = self._engine.step()
            for event in sampled:
                if self._closed:
                    return False  # an interrupted step has no result: `close` comes next
                self._deliver(event)
        except BaseException as error:
            if self._closed:
                return False
            _log.exception("a step of the engine failed")
            for sequence in list(self._active):
                failure = GenerationError(f"the engine failed: {error}")
                failure.__cause__ = error
                self._end(sequence, error=failure)
        return True  # where nothing is left, the next turn tidies up

    def _tidy(self) -> bool:
        try:
            return not self._closed and self._engine.tidy()
        except BaseException:  # nobody waits for it
            _log.exception("the engine failed to tidy up")
            return False

    def _drop_cancelled(self) -> None:
        while self._cancelled:
            sequence = self._cancelled.popleft()
            if sequence in self._active:
                self._leave(sequence)
            elif sequence in self._waiting:
                self._waiting.remove(sequence)

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self._engine.slots:
            sequence = self._waiting[0]
            sequence.tokens = list(sequence.prompt)
            try:
                if not self._engine.admit(sequence):
                    assert self._active, "an engine that has nothing to do has room"
                    return  # it stays the first in the queue
                self._active.append(self._waiting.popleft())
                sequence.request.measure(prompt_tokens=len(sequence.prompt))
                self._sample_memory(sequence)
            except BaseException as error:
                if sequence not in self._active:
                    self._waiting.popleft()
                    if sequence.slot is not None:  # the engine failed with the slot half filled
                        self._release(sequence)
                self._end(sequence, error=failure_of(error))

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for sequence in [*self._active, *self._waiting]:
            deadline = sequence.request.deadline
            if deadline is not None and now > deadline:
                self._end(sequence, error=sequence.request.timed_out())

    def _deliver(self, event: Sampled) -> None:
        """Hand out what a step brought a sequence. What its own parser, constraint or sink raises ends it alone."""
        sequence = event.sequence
        try:
            if sequence.request.cancelled:
                if sequence in self._active:
                    self._leave(sequence)
            elif event.error is not None:
                self._end(sequence, error=event.error)
            else:
                self._take(sequence, event)
        except BaseException as error:
            self._end(sequence, error=failure_of(error))

    def _take(self, sequence: Sequence, event: Sampled) -> None:
        token = event.token
        if sequence.generated == 0:
            sequence.first_token_at = time.monotonic()
            sequence.request.measure(cached_tokens=sequence.cached_tokens)
            self._sample_memory(sequence)
        sequence.generated += 1
        sequence.tokens.append(token)
        if self._engine.is_end(token) or token in sequence.stop_tokens:
            self._end(sequence, "stop")
            return
        piece = self._engine.piece(token, sequence.special)
        for out in sequence.output.push(piece, token, event.logprob, self._named(event.top_logprobs)):
            sequence.sink.put(out)
        if sequence.generated == 1:
            # Where the engine keeps all cores busy, who waits for the first token gets one some milliseconds into
            # the next step, unless this thread lets go of its own.
            time.sleep(0)
        if sequence.output.stopped or (sequence.constraint is not None and sequence.constraint.finished):
            self._end(sequence, "stop")
        elif sequence.generated == sequence.max_tokens or len(sequence.tokens) > self._engine.context_length:
            self._end_at_limit(sequence)

    def _end_at_limit(self, sequence: Sequence) -> None:
        if sequence.constraint is not None and sequence.constraint.complete:
            sequence.request.shortened = True  # it might have gone on
            self._end(sequence, "stop")
        elif sequence.forced_call:
            why = f"the tool call is not complete after {sequence.generated} tokens: raise max_tokens or context_length"
            self._end(sequence, error=GenerationError(why))
        else:
            self._end(sequence, "length")

    def _named(self, top: tuple[tuple[int, float], ...]) -> tuple[TopLogprob, ...]:
        return tuple(
            TopLogprob(self._engine.piece(token, True).decode("utf-8", "replace"), token, logprob)
            for token, logprob in top
        )

    def _end(
        self, sequence: Sequence, reason: FinishReason | None = None, *, error: BaseException | None = None
    ) -> None:
        """End a sequence, and tell its consumer, whatever fails meanwhile."""
        if sequence in self._active:
            self._leave(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        try:
            if not sequence.output.stopped:
                for out in sequence.output.finish():
                    if error is None or not sequence.forced_call or out.kind != "text":
                        sequence.sink.put(out)
            if sequence.constraint is not None and sequence.constraint.shortened:
                sequence.request.shortened = True
            if not sequence.request.cancelled:
                if reason == "length":  # "stop" is told apart from "tool_calls" by the tokens themselves
                    sequence.request.finish_reason = reason
                self._measure(sequence)
        except BaseException as failure:
            error = error or failure_of(failure)
        try:
            sequence.sink.close(error)
        except BaseException:  # a sink of another library: the error can't be reported to it
            _log.exception("the end of a sequence could not be told")

    def _leave(self, sequence: Sequence) -> None:
        self._active.remove(sequence)
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        try:
            self._engine.release(sequence)
        except BaseException:  # what it gave stands, and the others go on
            _log.exception("the engine failed to release a sequence")

    def _measure(self, sequence: Sequence) -> None:
        now = time.monotonic()
        memory = self._sample_memory(sequence)
        started = sequence.request.started
        first = sequence.first_token_at
        sequence.request.measure(
            generated_tokens=sequence.generated,
            prefill_seconds=sequence.prefill_seconds,
            decode_seconds=now - first if first else 0.0,
            total_seconds=now - started,
            time_to_first_token=first - started if first else 0.0,
            peak_memory_bytes=sequence.peak_memory,
            active_memory_bytes=memory,
        )

    def _sample_memory(self, sequence: Sequence) -> int:
        # To ask the system is to let a consumer have the interpreter first: a few per cent of a short request.
        now = time.monotonic()
        if now - self._memory_at > MEMORY_INTERVAL:
            self._memory_at = now
            try:
                self._memory = self._engine.memory()
            except BaseException:  # a figure of the metrics is not worth an answer
                _log.exception("the engine failed to measure its memory")
        active, peak = self._memory
        sequence.peak_memory = max(sequence.peak_memory, peak)
        return active


def failure_of(error: BaseException) -> Exception:
    """`error` as it may be handed to a caller: an Exception, also for a library that panicked."""
    if isinstance(error, Exception):
        return error
    failure = GenerationError(f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def log_softmax_top(logits: Any, token: int, n: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The natural log probability of `token`, and the `n` likeliest tokens with their log probabilities.

    `logits` is a float array of length vocab_size, as the model gave it.
    """
    import numpy as np

    values = np.asarray(logits, dtype=np.float64)
    peak = float(values.max())
    normaliser = peak + math.log(float(np.exp(values - peak).sum()))
    n = min(n, len(values))
    best = np.argpartition(-values, n - 1)[:n] if n else np.empty(0, dtype=np.intp)
    best = best[np.argsort(-values[best], kind="stable")]
    return float(values[token]) - normaliser, tuple((int(i), float(values[i]) - normaliser) for i in best)
