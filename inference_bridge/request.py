# SPDX-License-Identifier: Apache-2.0
"""One operation, as the author of a backend sees it: what was requested, and whether it was cancelled."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from . import _telemetry
from .errors import BridgeError, GenerationError, GenerationTimeoutError
from .options import GenerateConfig
from .types import FinishReason, GenerateMetrics, GenerateResult, Message, Token


class Request:
    """A checked request, the argument of `_run` and `_arun`.

    Read `kind`, `prompt` (of "generate") or `messages` (of "chat"), and `config`. Every option of `config` that is
    not None is one that the model supports, and was set by the caller or by the model's `defaults`.
    Set `finish_reason` at the end, and call `measure` with the metrics. What you do not set is computed from the tokens
    and the clock. The base class makes the request; a backend only reads it.
    """

    def __init__(
        self,
        kind: Literal["generate", "chat"],
        config: GenerateConfig,
        *,
        prompt: str = "",
        messages: tuple[Message, ...] = (),
        spent: float = 0.0,
    ) -> None:
        self.kind = kind
        self.config = config
        self.prompt = prompt
        self.messages = messages
        self.finish_reason: FinishReason | None = None
        self.metrics = GenerateMetrics()
        self.shortened = False
        """Whether max_tokens made a constrained answer shorter than the model would have made it."""
        self.deadline: float | None = None
        self.error: BaseException | None = None
        self.prepared: Any = None
        """For the backend: what it computed when it checked the request."""
        self.work: Any = None
        """For the backend: what it prepared before it runs the request."""
        self.to_come: Callable[[], Request] | None = None
        """Makes the complete request later, if reading the caller's arguments takes long: see `become`."""
        self.verifying = False
        """Whether the request is still being checked. Then a ValueError is due to the caller's arguments."""
        self._made = time.monotonic() - spent
        self.spent = spent
        """Seconds of the timeout that had passed before the operation began."""
        self.caller = _telemetry.caller()
        """For telemetry, like the next two attributes: the context of the caller."""
        self.error_type: str | None = None
        """The class name of the error with which the operation ended."""
        self.dropped = False
        """Whether the garbage collector ended the operation, because its stream was dropped."""
        self._pid = os.getpid()
        self._cancelled = False
        self._over_limit = False
        self._measured: set[str] = set()
        self._first = [True]
        """The first call of `cancel` removes the item. No lock is used: a signal handler may interrupt `on_cancel`."""
        self._callbacks: list[Callable[[], None]] = []
        self._tokens: list[Token] = []
        self.started = 0.0
        self._first_token = 0.0

    # ------------------------------------------------ for the author

    @property
    def cancelled(self) -> bool:
        """Whether the operation was cancelled: `_run` should return soon."""
        return self._cancelled

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Register a function that is called when the request is cancelled.

        Args:
            callback: Called in any thread; at once if the request is already cancelled. It must not block.
        """
        self._callbacks.append(callback)
        if self._cancelled:
            self._call_back()

    def measure(self, **fields: float) -> None:
        """Set metrics of the operation.

        Args:
            fields: Fields of GenerateMetrics, by name. They are not computed from the tokens and the clock then.
        """
        self._measured.update(fields)
        self.metrics = replace(self.metrics, **fields)  # type: ignore[arg-type]

    def remaining(self) -> float | None:
        """Return the seconds until the timeout, at least 0; None without a timeout."""
        return None if self.deadline is None else max(self.deadline - time.monotonic(), 0.0)

    # ------------------------------------------------ for the streams

    def cancel(self, error: BaseException | None = None) -> None:
        """Cancel the operation. Only the first call has an effect.

        Args:
            error: The error with which the operation ends. None: it ends with the finish reason "cancelled".
        """
        if self.forked:
            self._cancelled = True
            return
        try:
            self._first.pop()
        except IndexError:
            return
        self.error = error
        self._cancelled = True
        self._call_back()

    def _call_back(self) -> None:
        while True:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:
                return
            try:
                callback()
            except Exception:  # the other callbacks must still be called
                import logging

                logging.getLogger("inference_bridge").exception("cancelling a request failed")

    @property
    def forked(self) -> bool:
        """Whether this process is a forked child. The operation runs in the parent; locks may be held here for ever."""
        return self._pid != os.getpid()

    def begin(self) -> None:
        """Start the clock."""
        self.started = time.monotonic()
        if self.config.timeout is not None:
            self.deadline = self.started + max(self.config.timeout - self.spent, 0.0)

    def count_time(self) -> None:
        """Set the deadline of the work before the operation begins. The timeout counts from the request's creation."""
        if self.config.timeout is not None:
            self.deadline = self._made + self.config.timeout

    def check_time(self) -> None:
        """Check the timeout.

        Raises:
            GenerationTimeoutError: The timeout is over.
        """
        if self.remaining() == 0.0:
            raise self.timed_out()

    def prepared_now(self) -> None:
        """Record how long the work before the operation took. The time until the iteration begins is not counted."""
        self.spent = time.monotonic() - self._made

    def become(self, other: Request) -> None:
        """Take over the config, the prompt and the messages of a request that was made later."""
        self.config, self.prompt, self.messages = other.config, other.prompt, other.messages
        self.prepared, self.to_come = other.prepared, None

    def accept(self, token: Token) -> bool:
        """Add a token from the backend.

        Args:
            token: The token.

        Returns:
            False if the token would exceed max_tokens. It is then not added, and the operation ends.

        Raises:
            GenerationTimeoutError: The timeout is over.
        """
        limit = self.config.max_tokens
        if not self._tokens:
            self._first_token = time.monotonic()
        elif limit is not None and 0 < limit <= len(self._tokens):
            self._over_limit = True
            return False
        self._tokens.append(token)
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise self.timed_out()
        return True

    def timed_out(self) -> GenerationTimeoutError:
        """Return the error for an operation whose timeout is over."""
        return GenerationTimeoutError(
            f"not finished within timeout={self.config.timeout} s ({len(self._tokens)} tokens until then)",
            partial=None if self.started else self.result(),  # after the start, the stream sets it
        )

    def failure(self, error: BaseException) -> BaseException:
        """Return the error that the caller should see for `error`.

        That is the error with which the request was cancelled, if any; `error` itself if it has a type of this package;
        or a GenerationError.
        """
        if not isinstance(error, Exception):
            return error
        if self.error is not None:
            return self.error
        if isinstance(error, BridgeError) or (self.verifying and isinstance(error, TypeError | ValueError)):
            return error
        if isinstance(error, TimeoutError) and self.remaining() == 0:
            return self.timed_out()
        wrapped = GenerationError(f"{type(error).__name__}: {error}")
        wrapped.__cause__ = error
        return wrapped

    def end(self, error: BaseException | None = None) -> None:
        """Stop the clock, and compute what the backend did not set.

        Args:
            error: The error with which the request ended. None: it ended without an error.
        """
        now = time.monotonic()
        total = now - self.started if self.started else 0.0
        first = self._first_token - self.started if self._tokens else 0.0
        own = {
            "generated_tokens": len(self._tokens),
            "total_seconds": total,
            "time_to_first_token": first,
            "prefill_seconds": first,
            "decode_seconds": total - first if self._tokens else 0.0,
        }
        self.measure(**{name: value for name, value in own.items() if name not in self._measured})
        if isinstance(error, Exception):
            self.finish_reason = None
            self.error_type = type(error).__qualname__
        elif self._over_limit:
            self.finish_reason = "length"
        elif self._cancelled:
            self.finish_reason = "cancelled"
        elif self.finish_reason is None:
            self.finish_reason = "tool_calls" if self.result().tool_calls else "stop"

    def result(self) -> GenerateResult:
        """Return what has been generated so far."""
        return GenerateResult(tuple(self._tokens), self.finish_reason, self.metrics, shortened=self.shortened)
