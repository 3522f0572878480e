# SPDX-License-Identifier: Apache-2.0
"""One operation, as the author of a backend sees it: what was asked, and whether it still is."""

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
    """A checked request, handed to `_run` or `_arun`.

    Read `kind`, `prompt` (of "generate") or `messages` (of "chat"), and `config`, in which
    every option that is not None was set by the caller and is one the model said it honours.
    Say how it ended in `finish_reason`, and what it cost through `measure`; what is not said
    is filled in from the tokens and the clock.
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
        """Whether the limit of tokens made a constrained answer shorter than the model would have made it."""
        self.deadline: float | None = None
        self.error: BaseException | None = None
        self.prepared: Any = None
        """The backend's own, from where it checked the request to where it runs it."""
        self.work: Any = None
        """The backend's own, of what it made before it runs the request."""
        self.to_come: Callable[[], Request] | None = None
        """Makes the request, where reading what the caller passed takes long: see `become`."""
        self.verifying = False
        """Whether it is being checked still, so that a ValueError is the caller's own."""
        self._made = time.monotonic() - spent
        self.spent = spent
        """Seconds of its timeout that went by before it began."""
        self.caller = _telemetry.caller()
        """For telemetry, as are the next two: where the operation was called."""
        self.error_type: str | None = None
        """The class of the error it ended with."""
        self.dropped = False
        """Whether its stream was left to the garbage collector."""
        self._pid = os.getpid()
        self._cancelled = False
        self._over_limit = False
        self._measured: set[str] = set()
        self._first = [True]
        """The first `cancel` takes the item. There is no lock: a signal handler may interrupt `on_cancel`."""
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
        """Have `callback` called, from any thread, when the request is cancelled; at once if it is."""
        self._callbacks.append(callback)
        if self._cancelled:
            self._call_back()

    def measure(self, **fields: float) -> None:
        """Set fields of the operation's GenerateMetrics."""
        self._measured.update(fields)
        self.metrics = replace(self.metrics, **fields)  # type: ignore[arg-type]

    def remaining(self) -> float | None:
        """Seconds until the timeout, at least 0; None without one."""
        return None if self.deadline is None else max(self.deadline - time.monotonic(), 0.0)

    # ------------------------------------------------ for the streams

    def cancel(self, error: BaseException | None = None) -> None:
        """End the operation from outside, as "cancelled", or with `error`. Only the first call counts."""
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
            except Exception:  # the others, and other requests, are to hear of it all the same
                import logging

                logging.getLogger("inference_bridge").exception("cancelling a request failed")

    @property
    def forked(self) -> bool:
        """Whether this is a forked child's copy: locks may be held here for ever, and what runs is the parent's."""
        return self._pid != os.getpid()

    def begin(self) -> None:
        """Start the clock."""
        self.started = time.monotonic()
        if self.config.timeout is not None:
            self.deadline = self.started + max(self.config.timeout - self.spent, 0.0)

    def count_time(self) -> None:
        """Count the timeout from when this was made, for what is done before the operation begins."""
        if self.config.timeout is not None:
            self.deadline = self._made + self.config.timeout

    def check_time(self) -> None:
        """Raise GenerationTimeoutError once the timeout is over."""
        if self.remaining() == 0.0:
            raise self.timed_out()

    def prepared_now(self) -> None:
        """What was to be done before the operation begins is done: its time counts, the wait until then does not."""
        self.spent = time.monotonic() - self._made

    def become(self, other: Request) -> None:
        """Take over what was asked for from a request that was made later."""
        self.config, self.prompt, self.messages = other.config, other.prompt, other.messages
        self.prepared, self.to_come = other.prepared, None

    def accept(self, token: Token) -> bool:
        """Take a token from the backend. False: it is one more than max_tokens, and the end."""
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
        return GenerationTimeoutError(
            f"not finished within timeout={self.config.timeout} s ({len(self._tokens)} tokens until then)",
            partial=None if self.started else self.result(),  # once it has begun, its stream sees to it
        )

    def failure(self, error: BaseException) -> BaseException:
        """`error` as the caller should see it: typed. What the request was cancelled with comes first."""
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
        """Stop the clock, and fill in what the backend did not say. `error`: what it ended with."""
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
        """What was generated so far."""
        return GenerateResult(tuple(self._tokens), self.finish_reason, self.metrics, shortened=self.shortened)
