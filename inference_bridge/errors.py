# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, one class each.

Every message says what happened, to what, and what to do. Catch `BridgeError` for
all of them; `GenerationError` and its subclasses are raised while iterating a stream
and keep what was generated until then in `partial`.

Wrong arguments are not here: they raise the builtin TypeError and ValueError, at the
call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .availability import Availability
    from .types import GenerateResult


class BridgeError(Exception):
    """Base of every error this library raises on its own account."""


class BackendNotFoundError(BridgeError):
    """No backend of that name is registered."""


class BackendUnavailableError(BridgeError):
    """The backend is registered, but can't run on this machine as it is."""

    def __init__(self, name: str, availability: Availability) -> None:
        self.backend = name
        self.availability = availability
        message = f"backend {name!r} is not available: {availability.reason or 'no reason given'}"
        if availability.hint:
            message += f". {availability.hint}"
        super().__init__(message)


class NoBackendAvailableError(BridgeError):
    """No registered backend can take the source. `reasons` maps each one's name to its why."""

    def __init__(self, message: str, reasons: Mapping[str, str]) -> None:
        self.reasons = dict(reasons)
        lines = [message, *(f"  {name}: {why}" for name, why in self.reasons.items())]
        super().__init__("\n".join(lines))


class ModelNotFoundError(BridgeError):
    """The source names no model: not a path, a URL, a configured name or a discovered one."""


class ModelLoadError(BridgeError):
    """The model is there, but can't be loaded: damaged, unreadable, unsupported or too large."""


class ModelClosedError(BridgeError):
    """The model was closed, or belongs to the process this one was forked from."""


class UnsupportedError(BridgeError):
    """The backend, or this model on it, can't do what was asked. Nothing was started.

    `feature` is the option, load option, capability or operation that was asked for.
    """

    def __init__(self, feature: str, backend: str, why: str = "") -> None:
        self.feature = feature
        self.backend = backend
        message = f"{backend} does not support {feature}"
        super().__init__(f"{message}: {why}" if why else message)


class ConfigError(BridgeError):
    """The configuration file is wrong. The message names the file and the key."""


class GenerationError(BridgeError):
    """Generation failed after it had begun.

    `partial` holds what was generated until then (None if the operation has no stream).
    """

    def __init__(self, message: str, *, partial: GenerateResult | None = None) -> None:
        super().__init__(message)
        self.partial = partial


class ContextLengthExceededError(GenerationError):
    """The prompt is longer than the context. Nothing was decoded.

    `prompt_tokens` and `context_length` count tokens.
    """

    def __init__(self, prompt_tokens: int, context_length: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length
        super().__init__(
            f"the prompt has {prompt_tokens} tokens, the context holds {context_length}: "
            "shorten the prompt or load the model with a larger context_length"
        )


class GenerationTimeoutError(GenerationError, TimeoutError):
    """The operation took longer than its `timeout`."""


class ServerError(GenerationError):
    """A server refused, failed or answered nonsense. `status` is the HTTP status, if there was one."""

    def __init__(self, message: str, *, status: int | None = None, partial: GenerateResult | None = None) -> None:
        super().__init__(message, partial=partial)
        self.status = status


class ServerCrashedError(ServerError):
    """A server that we manage ended by itself. The message has the last lines of its log."""
