# SPDX-License-Identifier: Apache-2.0
"""The scheduler of an engine: it queues requests, admits them to slots, and delivers their tokens and metrics.

An engine has a small interface: it admits a sequence to a slot, computes a step for all admitted sequences, and
releases a sequence. It is only called from its worker's thread.
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
from ..errors import GenerationError, ModelClosedError, ToolCallCutError
from ..grammar.grammar import Vocabulary
from ..options import GenerateConfig
from ..request import Request
from ..types import FinishReason, Token, TopLogprob
from .worker import Worker

_log = logging.getLogger(__name__)

MEMORY_INTERVAL = 0.05
"""Seconds for which a measurement of the memory is reused."""


LOWEST_TEMPERATURE = 1e-6
"""Below this temperature the most likely token is chosen: a division by less would overflow 32-bit floats."""


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
        """Return the sampling that `config` asks for. top_p=0 and repeat_penalty=0 mean off."""
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
    """Restricts the tokens of a sequence: see `grammar.grammar`. Only used in the worker's thread."""

    @property
    def finished(self) -> bool:
        """Whether the text is complete, and no token may follow."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        ...

    @property
    def shortened(self) -> bool:
        """Whether the limit of tokens has excluded a token that the model would have chosen."""
        ...

    def mask(self, logits: Any) -> None:
        """Set the logits, float32 [vocab_size], of the tokens that must not follow to -inf, in place."""
        ...

    def fits(self, token: int) -> bool:
        """Return whether the text can be completed within the limit of tokens after this token."""
        ...

    def exclude(self, token: int, logits: Any) -> None:
        """Set the logit of a token that does not fit to -inf, in place.

        After several such tokens it leaves only one token, which fits.
        """
        ...

    def accept(self, token: int) -> None:
        """Append the token that was chosen to the text."""
        ...


@dataclass(eq=False, slots=True)
class Sequence:
    """One request that the engine runs."""

    request: Request
    prompt: list[int]
    sampling: Sampling
    output: Output
    sink: Sink[Token]
    max_tokens: int
    """Maximum number of generated tokens. -1: until the context is full."""
    stop_tokens: frozenset[int]
    constraint: Constraint | None = None
    forced_call: bool = False
    """Whether the answer must be a tool call. If it is cut off, that is an error, and its text is dropped."""
    on_logits: Callable[[Any], None] | None = None
    """Called in the worker's thread with the logits, float32 [vocab_size], of the only token, before a constraint is
    applied. `max_tokens` is 1 then."""
    media: Mapping[int, Any] = field(default_factory=dict)
    """Images and sounds in the prompt, objects of the engine, by the index of their first token, in order. Their token
    ids are negative."""
    special: bool = False
    """Whether the text includes special tokens, because the markup of a chat's output may consist of them."""
    tokens: list[int] = field(default_factory=list)
    """Prompt and generated tokens, in order."""
    generated: int = 0
    prefill_seconds: float = 0.0
    cached_tokens: int = 0
    slot: Any = None
    """The engine's slot of the sequence. None: it has none."""
    first_token_at: float = 0.0
    peak_memory: int = 0


class Sampled(NamedTuple):
    """The result of a step for one sequence: a token, or the error that ends the sequence."""

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
    """The vocabulary for constrained decoding. None: it is not supported."""

    @property
    def idle(self) -> bool:
        """Whether every admitted sequence waits for work in another thread, which wakes the worker at its end."""
        ...

    def admit(self, sequence: Sequence) -> bool:
        """Give the sequence a slot, with the part of its prompt that can be reused.

        Returns:
            False if it must wait for a sequence that has a slot.
        """
        ...

    def step(self) -> Iterable[Sampled]:
        """Evaluate a chunk of a prompt, or decode one token for every sequence whose prompt is evaluated."""
        ...

    def release(self, sequence: Sequence) -> None:
        """Free the slot of a sequence that has ended or was cancelled."""
        ...

    def is_end(self, token: int) -> bool:
        """Return whether the model ends its text with this token."""
        ...

    def piece(self, token: int, special: bool) -> bytes:
        """Return the bytes of a token. A special token has none unless `special`."""
        ...

    def tidy(self) -> bool:
        """Do a piece of work that can wait until no sequence is admitted. Return True if there may be more of it."""
        ...

    def memory(self) -> tuple[int, int]:
        """Return the bytes in use and their recent peak, of the process or of the engine's device."""
        ...

    def interrupt(self) -> None:
        """Make the current step and all later ones fail soon. Called from any thread."""
        ...

    def close(self) -> None: ...


class Scheduler:
    """Admits sequences to free slots in the order of their arrival, and delivers their tokens."""

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
        """Queue a sequence, and return at once. Its sink gets its tokens, and is closed at its end."""

        def cancel() -> None:
            sequence.sink.close()  # the consumer does not have to wait for the current step
            self._cancelled.append(sequence)
            self._worker.wake()

        sequence.request.on_cancel(cancel)
        self._arrived.append(sequence)
        if self._closed:  # `close` may have read the queue for the last time
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
                    with contextlib.suppress(BaseException):  # a sink may be code of an application
                        sequence.sink.close(ModelClosedError("the model was closed while it generated"))
            self._active.clear()
            self._waiting.clear()
        finally:
            self._engine.close()

    @property
    def load(self) -> tuple[int, int]:
        """The number of sequences that have a slot, and of those that wait."""
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
        return True  # if no sequence is left, the next turn calls `tidy`

    def _tidy(self) -> bool:
        try:
            return not self._closed and self._engine.tidy()
        except BaseException:  # no request waits for it, so the error only goes to the log
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
                    assert self._active, "an engine without sequences must admit one"
                    return  # the sequence stays the first in the queue
                self._active.append(self._waiting.popleft())
                sequence.request.measure(prompt_tokens=len(sequence.prompt))
                self._sample_memory(sequence)
            except BaseException as error:
                if sequence not in self._active:
                    self._waiting.popleft()
                    if sequence.slot is not None:  # the engine failed after it had assigned the slot
                        self._release(sequence)
                self._end(sequence, error=failure_of(error))

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for sequence in [*self._active, *self._waiting]:
            deadline = sequence.request.deadline
            if deadline is not None and now > deadline:
                self._end(sequence, error=sequence.request.timed_out())

    def _deliver(self, event: Sampled) -> None:
        """Process the result of a step for a sequence. An error of its parser, constraint or sink ends it alone."""
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
            # The engine may keep all cores busy. Without this yield, a caller that waits for the first token would get
            # a core only some milliseconds into the next step.
            time.sleep(0)
        if sequence.output.stopped or (sequence.constraint is not None and sequence.constraint.finished):
            self._end(sequence, "stop")
        elif sequence.generated == sequence.max_tokens or len(sequence.tokens) > self._engine.context_length:
            self._end_at_limit(sequence)

    def _end_at_limit(self, sequence: Sequence) -> None:
        if sequence.constraint is not None and sequence.constraint.complete:
            sequence.request.shortened = True  # the model might have continued
            self._end(sequence, "stop")
        elif sequence.forced_call:
            why = f"the tool call is not complete after {sequence.generated} tokens: raise max_tokens or context_length"
            self._end(sequence, error=ToolCallCutError(why))
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
        """End a sequence and close its sink, even if a step of this fails."""
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
                if reason == "length":  # whether it is "stop" or "tool_calls" follows from the tokens
                    sequence.request.finish_reason = reason
                self._measure(sequence)
        except BaseException as failure:
            error = error or failure_of(failure)
        try:
            sequence.sink.close(error)
        except BaseException:  # a sink may be code of an application, which can't be told of its own error
            _log.exception("the sink of a sequence could not be closed")

    def _leave(self, sequence: Sequence) -> None:
        self._active.remove(sequence)
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        try:
            self._engine.release(sequence)
        except BaseException:  # the tokens of the sequence are valid, and the other sequences continue
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
        # A system call lets a consumer's thread run first, which costs a few per cent of the time of a short request.
        now = time.monotonic()
        if now - self._memory_at > MEMORY_INTERVAL:
            self._memory_at = now
            try:
                self._memory = self._engine.memory()
            except BaseException:  # an answer must not fail because of its metrics
                _log.exception("the engine failed to measure its memory")
        active, peak = self._memory
        sequence.peak_memory = max(sequence.peak_memory, peak)
        return active


def failure_of(error: BaseException) -> Exception:
    """Return `error` as an Exception. A panic of a Rust library, which is only a BaseException, is wrapped."""
    if isinstance(error, Exception):
        return error
    failure = GenerationError(f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def log_softmax_top(logits: Any, token: int, n: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Compute log probabilities.

    Args:
        logits: A float array of length vocab_size, as computed by the model.
        token: The chosen token.
        n: Number of most likely tokens to return.

    Returns:
        The natural log probability of `token`; the `n` most likely tokens, each with its log probability.
    """
    import numpy as np

    values = np.asarray(logits, dtype=np.float64)
    peak = float(values.max())
    normaliser = peak + math.log(float(np.exp(values - peak).sum()))
    n = min(n, len(values))
    best = np.argpartition(-values, n - 1)[:n] if n else np.empty(0, dtype=np.intp)
    best = best[np.argsort(-values[best], kind="stable")]
    return float(values[token]) - normaliser, tuple((int(i), float(values[i]) - normaliser) for i in best)
