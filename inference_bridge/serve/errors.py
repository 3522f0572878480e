# SPDX-License-Identifier: Apache-2.0
"""Errors as a client of an API sees them: an HTTP status, and the error object of that API.

Sources: https://platform.openai.com/docs/guides/error-codes, https://docs.anthropic.com/en/api/errors and
https://github.com/mandu5/jevcompat/blob/main/SPEC.md
"""

from __future__ import annotations

import logging
from typing import Any

from starlette.responses import Response

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
    ToolCallCutError,
    UnsupportedError,
)
from .events import JSONAnswer

_log = logging.getLogger(__name__)


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
        status: The HTTP status.
        message: What is wrong, and what to do.
        param: The name of the field that is wrong.
        code: An identifier of the error, for programs.
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
        """Return OpenAI's error object."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 401:
            kind = "authentication_error"
        elif self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def to_anthropic(self) -> dict[str, Any]:
        """Return Anthropic's error object."""
        kind = _ANTHROPIC.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": str(self)}}

    def response(self, path: str) -> Response:
        """Return the answer to a request for that path."""
        if path == SYSTEM_ONE_PATH:
            wrong = self.status == 400 and self.code is None
            return JSONAnswer(self.to_system_one(), 422 if wrong else self.status, self.headers)
        shown = self.to_anthropic() if path.startswith(ANTHROPIC_PATHS) else self.to_dict()
        return JSONAnswer(shown, self.status, self.headers)

    def to_system_one(self) -> dict[str, Any]:
        """Return the System One API's error object. For a wrong field, it is a list with the path of the field."""
        if self.status == 400 and self.code is None:
            place = ["body", *(self.param or "").split(".")] if self.param else ["body"]
            return {"detail": [{"loc": place, "msg": str(self), "type": "value_error"}]}
        kind = _SYSTEM_ONE.get(self.status, "internal_error" if self.status >= 500 else "api_usage_error")
        return {"detail": {"error_type": self.code if self.status == 400 else kind, "message": str(self)}}


ANTHROPIC_PATHS = "/v1/messages"
"""Requests for paths that begin with this are answered with Anthropic's error object."""

SYSTEM_ONE_PATH = "/v1/systemone"
"""Requests for this path are answered with the System One API's error object."""

_SYSTEM_ONE = {
    401: "authentication_error",
    403: "authentication_error",
    404: "not_found",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


_STATUS: tuple[tuple[type[Exception], int, str | None], ...] = (
    (ContextLengthExceededError, 400, "context_length_exceeded"),
    (ToolCallCutError, 400, "tool_call_cut"),
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
    """Return the error to answer with. The message of an unexpected error is only written to the log."""
    if isinstance(error, RequestError):
        return error
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            param = error.feature.partition("=")[0] if isinstance(error, UnsupportedError) else None
            return RequestError(status, str(error), param=param, code=code)
    _log.error("a request failed", exc_info=error)
    return RequestError(500, "internal error: the server's log has the details")
