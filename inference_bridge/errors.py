# SPDX-License-Identifier: Apache-2.0
"""The errors that this library raises.

Each message says what happened, which model or backend is concerned, and what to do. Catch
`BridgeError` for all of them. `GenerationError` and its subclasses are raised while a stream is
iterated, and keep the output generated so far in `partial`.

A wrong argument raises the built-in TypeError or ValueError at the call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .availability import Availability
    from .types import GenerateResult


_CONTROL = re.compile("[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


def printable(text: str) -> str:
    """Replace the characters that a terminal would act on or can't show by U+FFFD.

    These are control characters, overrides of the writing direction and lone surrogates. Names and messages from
    files and servers may contain them. Newlines and tabs are kept.

    Args:
        text: Any text.

    Returns:
        The text, safe to show on a terminal.
    """
    return _CONTROL.sub("\ufffd", text)


class PrintableError(Exception):
    """An error whose text, which may quote a file or a server, is safe to show on a terminal."""

    def __str__(self) -> str:
        return printable(super().__str__())


class BridgeError(PrintableError):
    """Base class of every error that this library defines."""


class BackendNotFoundError(BridgeError):
    """No backend with that name is registered."""


class BackendUnavailableError(BridgeError):
    """The backend is registered, but cannot run on this machine. `availability` says why and what to do."""

    def __init__(self, name: str, availability: Availability) -> None:
        self.backend = name
        self.availability = availability
        message = f"backend {name!r} is not available: {availability.reason or 'no reason given'}"
        if availability.hint:
            message += f". {availability.hint}"
        super().__init__(message)


class NoBackendAvailableError(BridgeError):
    """No registered backend can load the source. `reasons` maps each backend's name to its reason."""

    def __init__(self, message: str, reasons: Mapping[str, str]) -> None:
        self.reasons = dict(reasons)
        lines = [message, *(f"  {name}: {why}" for name, why in self.reasons.items())]
        super().__init__("\n".join(lines))


class ModelNotFoundError(BridgeError):
    """The source is not a path, a URL, a configured name or the name of a discovered model."""


class ModelLoadError(BridgeError):
    """The model exists but cannot be loaded: it is damaged, unreadable, unsupported or too large."""


class ModelClosedError(BridgeError):
    """The model was closed, or was loaded by the parent of this forked process."""


class UnsupportedError(BridgeError):
    """The backend, or this model of it, does not support what was requested. No work was started.

    `feature` names the requested option, load option, capability or operation; `why` is the reason, or "".
    """

    def __init__(self, feature: str, backend: str, why: str = "") -> None:
        self.feature = feature
        self.backend = backend
        self.why = why
        message = f"{backend} does not support {feature}"
        super().__init__(f"{message}: {why}" if why else message)


class ConfigError(BridgeError):
    """The configuration file is wrong. The message names the file and the key."""


class GenerationError(BridgeError):
    """Generation failed after it started.

    `partial` holds the output generated so far, or None for an operation without a stream.
    """

    def __init__(self, message: str, *, partial: GenerateResult | None = None) -> None:
        super().__init__(message)
        self.partial = partial


class ContextLengthExceededError(GenerationError):
    """The prompt is longer than the context window. Nothing was decoded.

    Attributes:
        prompt_tokens: Number of tokens of the prompt.
        context_length: Number of tokens that the context window holds.
        at_least: True: `prompt_tokens` is a lower bound, computed from the length of the prompt, which was not
            tokenized.
        what: The name of the text that is too long, such as "the prompt" or "texts[3]".
    """

    def __init__(
        self, prompt_tokens: int, context_length: int, *, at_least: bool = False, what: str = "the prompt"
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length
        self.at_least = at_least
        self.what = what
        count = f"at least {prompt_tokens}" if at_least else prompt_tokens
        super().__init__(
            f"{what} has {count} tokens, but the context window holds {context_length}: "
            f"shorten {'it' if what != 'the prompt' else what} or load the model with a larger context_length"
        )


class ToolCallCutError(GenerationError):
    """A forced tool call does not fit into `max_tokens` or the context window."""


class GenerationTimeoutError(GenerationError, TimeoutError):
    """The operation took longer than its `timeout`."""


class ServerError(GenerationError):
    """A server refused the request, failed, or sent an invalid response. `status` is the HTTP status, if any."""

    def __init__(self, message: str, *, status: int | None = None, partial: GenerateResult | None = None) -> None:
        super().__init__(message, partial=partial)
        self.status = status


class ServerCrashedError(ServerError):
    """A server process started by this library ended unexpectedly. The message contains the last lines of its log."""
