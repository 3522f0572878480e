# SPDX-License-Identifier: Apache-2.0
"""Errors as a client of the API sees them: an HTTP status and OpenAI's error object.

Source of the shape: https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

import logging
from typing import Any

from ..errors import (
    BackendNotFoundError,
    BackendUnavailableError,
    BridgeError,
    ContextLengthExceededError,
    GenerationTimeoutError,
    ModelClosedError,
    ModelLoadError,
    ModelNotFoundError,
    NoBackendAvailableError,
    ServerError,
    UnsupportedError,
)

_log = logging.getLogger(__name__)


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
        status: The HTTP status.
        message: What is wrong, and what to do.
        param: The name of the field that is wrong.
        code: A word that programs can compare.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers or {}

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 401:
            kind = "authentication_error"
        elif self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


_STATUS: tuple[tuple[type[Exception], int, str | None], ...] = (
    (ContextLengthExceededError, 400, "context_length_exceeded"),
    (UnsupportedError, 400, "unsupported"),
    (ModelNotFoundError, 404, "model_not_found"),
    (BackendNotFoundError, 404, "model_not_found"),
    (BackendUnavailableError, 503, None),
    (NoBackendAvailableError, 503, None),
    (ModelLoadError, 503, "model_not_loadable"),
    (ModelClosedError, 503, None),
    (GenerationTimeoutError, 504, "timeout"),
    (ServerError, 502, None),
    (BridgeError, 500, None),
    (TypeError, 400, None),
    (ValueError, 400, None),
)


def as_request_error(error: Exception) -> RequestError:
    """Return how an error is answered. The message of an unexpected error goes to the log alone."""
    if isinstance(error, RequestError):
        return error
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            param = error.feature.partition("=")[0] if isinstance(error, UnsupportedError) else None
            return RequestError(status, str(error), param=param, code=code)
    _log.error("a request failed", exc_info=error)
    return RequestError(500, "internal error: the server's log has the details")
