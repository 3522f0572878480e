# SPDX-License-Identifier: Apache-2.0
"""Converts failures of a server or of its connection into this package's errors, and says whether to try again."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any

import httpx2

from ....errors import ContextLengthExceededError, GenerationError, ServerError
from .. import bridge_format
from .context_length import too_long

MAX_ERROR_BYTES = 64 << 10
"""Maximum number of bytes that are read of an error's body."""

_SHOWN = 300
"""Maximum number of characters of the body that a message quotes."""

_GATEWAY = (502, 503, 504)


_OF_DEFAULTS = re.compile(
    r"(unsupported|not supported|does not support).{0,60}(max_tokens|temperature)"
    r"|(max_tokens|temperature).{0,60}(unsupported|not supported|does not support)",
    re.IGNORECASE | re.DOTALL,
)
"""Matches the messages of servers that do not support one of the two default fields."""


@dataclass(frozen=True)
class Failure:
    """A failed attempt.

    Attributes:
        error: The error.
        again: Whether to try again. "no". "soon": after a pause, a few times. "at once": on the same server, which has
            closed a kept connection. "loading": as long as the server says that it loads its model. "shorter": at once,
            with max_tokens of at most `room`, because the prompt fits, but not together with the completion.
        wait: The pause in seconds that the server asks for.
        room: The number of tokens that fit after the prompt.
    """

    error: GenerationError
    again: str = "no"
    wait: float | None = None
    room: int = 0


def of_transport(
    error: Exception,
    url: str,
    *,
    begun: bool = False,
    kept: bool = False,
    retry_refused: bool = True,
    private: Iterable[str] = (),
) -> Failure:
    """Return the failure for a connection that could not be made, or that broke.

    Args:
        error: The error of the transport.
        url: The address, for the message.
        begun: Whether the answer had begun.
        kept: Whether the connection had served another request. A server may close such a connection at any time.
        retry_refused: Whether to try again after a refused connection. True if the server was reachable before.
        private: Texts that the message must not quote.
    """
    said = quoted(str(error), private) or type(error).__name__
    if isinstance(error, httpx2.ConnectTimeout):
        return Failure(UnansweredError(f"{url}: no connection within connect_timeout. Is the address right?"))
    if isinstance(error, httpx2.ProxyError):
        return Failure(UnansweredError(f"{url}: the proxy refused: {said}. Check HTTP_PROXY, HTTPS_PROXY and NO_PROXY"))
    if isinstance(error, httpx2.ConnectError):
        advice = "Is the server running, and the address right?"
        if "CERTIFICATE" in said.upper() or "SSL" in said.upper():
            return Failure(ServerError(f"{url}: no trusted connection: {said}. ca_bundle names certificates to trust"))
        return Failure(UnansweredError(f"{url}: no connection: {said}. {advice}"), "soon" if retry_refused else "no")
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
        return Failure(ServerError(f"{url}: the request can't be sent: {said}"))
    if begun:
        return Failure(UnansweredError(f"{url}: the answer broke off: {said}"))
    closed = UnansweredError(f"{url}: the server closed the connection without an answer: {said}")
    return Failure(closed, "at once" if kept else "soon")


def of_status(
    url: str, status: int, headers: Mapping[str, str], body: bytes, private: Iterable[str] = (), *, context: int = 0
) -> Failure:
    """Return the failure for an answer whose status is not 200.

    Args:
        url: The address, for the message.
        status: The HTTP status.
        headers: The headers of the answer.
        body: The body of the answer.
        private: Texts (keys, prompts) that the message must not quote.
        context: Number of tokens that the context window holds. 0: unknown.

    Raises:
        TypeError, ValueError, UnsupportedError: The model that this package's own server serves refuses an argument.
    """
    content = as_json(body)
    if (own := bridge_format.error_from_json(content)) is not None:
        if not isinstance(own, GenerationError):
            raise own  # the served model refuses an argument, so another attempt would fail too
        return Failure(own)
    sentence = _message(content, body)
    said = quoted(sentence, private)
    head = f"{url}: {status}{_phrase(status)}"
    about = f"{head}: {said}" if said else head
    if 300 <= status < 400:
        target = quoted(headers.get("location", ""), private)
        advice = "redirects are not followed, for the key belongs to this server alone: use the address itself"
        return Failure(ServerError(f"{head} to {target or 'nowhere'}: {advice}", status=status))
    if status <= 500 and (found := too_long(content, sentence)) is not None:
        if found.room <= 0:
            return Failure(ContextLengthExceededError(found.prompt, found.context, at_least=found.at_least))
        return Failure(ServerError(about, status=status), "shorter", room=found.room)
    if status in (401, 403):
        return Failure(ServerError(f"{about}. Check the api_key", status=status))
    if status == 400 and "max_tokens must be at least 1, got 0" in sentence:  # vLLM, which had reduced max_tokens to 0
        if context:
            return Failure(ContextLengthExceededError(context, context))
        return Failure(ServerError(f"{about}. The prompt fills the whole context window: shorten it", status=status))
    if status in (400, 422) and _OF_DEFAULTS.search(sentence):
        advice = "defaults='server' as a load option sends no max_tokens and no temperature that you have not set"
        return Failure(ServerError(f"{about}. {advice}", status=status))
    if status == 404:
        return Failure(ServerError(f"{about}. Check the address and the model's name", status=status))
    if status == 429:
        wait = _retry_after(headers)
        asks = f" (it asks to wait {wait:.0f} s)" if wait is not None else ""
        return Failure(ServerError(f"{about}{asks}: the server has too much to do", status=status), "soon", wait)
    if status == 503 and "loading" in said.lower():
        return Failure(ServerError(f"{about}: the server still loads its model", status=status), "loading")
    if status in _GATEWAY:
        return Failure(ServerError(about, status=status), "soon", _retry_after(headers))
    return Failure(ServerError(about, status=status))


def error_in(answer: Any) -> Any:
    """Return the error in an answer with status 200, or in one of its events. None if it has no error."""
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if not isinstance(answer, Mapping):
        return None
    if error := answer.get("error"):
        return error if isinstance(error, Mapping | str | list) else answer
    if answer.get("object") == "error" or answer.get("type") == "error":
        return answer
    if not answer.keys() & {"choices", "content", "data", "usage", "tokens", "prompt", "timings"}:
        return answer if answer.keys() & {"detail", "errors", "message"} else None
    return None


def error_of_choice(event: Any) -> Any:
    """Return the error in the first choice of an event, as OpenRouter sends it. None if it has no error."""
    choices = event.get("choices") if isinstance(event, Mapping) else None
    first = choices[0] if choices and isinstance(choices, list) else None
    return first.get("error") if isinstance(first, Mapping) else None


def of_event(url: str, error: Any, private: Iterable[str] = ()) -> GenerationError:
    """Return the error for one that the server reports in the middle of its answer."""
    if isinstance(own := bridge_format.error_from_json(error), GenerationError):
        return own
    sentence = _message(error, b"")
    found = too_long({"error": error}, sentence)
    if found is not None and found.room <= 0:
        return ContextLengthExceededError(found.prompt, found.context, at_least=found.at_least)
    code = error.get("code") if isinstance(error, Mapping) else None
    said = quoted(sentence, private)
    status = code if isinstance(code, int) and 400 <= code < 600 else None
    return ServerError(f"{url}: the server failed: {said or 'it does not say why'}", status=status)


def of_content(url: str, content: bytes, private: Iterable[str] = ()) -> GenerationError | None:
    """Return the error that the server reports outside the events of its answer. None if `content` has no error."""
    wrong = error_in(as_json(content))
    return of_event(url, wrong, private) if wrong else None


class UnansweredError(ServerError):
    """The server did not answer, or its answer broke off or stalled. Another server may answer."""


class MalformedAnswerError(ServerError):
    """The answer does not follow the protocol."""

    def __init__(self, url: str, what: str) -> None:
        super().__init__(f"{url}: {what}: is this a llama-server or an OpenAI-compatible server?")


# ---------------------------------------------------------------- what a body says


def as_json(body: bytes) -> Any:
    """Return the JSON in `body`; None if it is not JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


_SAY = ("message", "error", "errors", "detail", "details", "msg", "reason", "error_message", "error_description")
"""The keys under which servers describe an error, the most useful first."""

_LESS = ("title", "type", "code", "error_type")
"""Less useful keys, which are read if none of the others is present."""

_DEPTH = 6


def _message(content: Any, body: bytes) -> str:
    """Return the message in the JSON of an error body. If the body is not JSON, return its text."""
    found = _sentence(content)
    if found or isinstance(content, Mapping | list):
        return found
    return plain_text(body)


def plain_text(body: bytes) -> str:
    """Return the text of a body, without HTML tags."""
    return re.sub(r"<[^>]{0,200}>", " ", body.decode("utf-8", "replace"))


def _sentence(value: Any, depth: int = 0) -> str:
    """Return the message in `value`. Other keys ("input", "ctx") repeat the request, and are not quoted."""
    if isinstance(value, str):
        return value
    if depth > _DEPTH:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (_sentence(one, depth + 1) for one in value[:3])))
    if not isinstance(value, Mapping):
        return ""
    for key in _SAY:
        if found := _sentence(value.get(key), depth + 1):
            return found
    return next((str(value[key]) for key in _LESS if isinstance(value.get(key), str | int)), "")


def _brief(text: str) -> str:
    text = "".join(one if one.isprintable() else "\ufffd" for one in " ".join(text.split()))
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def quoted(text: str, private: Iterable[str]) -> str:
    """Return `text` in a form that a message may quote: private texts are hidden, and then it is shortened."""
    return _brief(_hidden(" ".join(text.split()), private))


def tells_nothing(error: BaseException, private: Iterable[str]) -> bool:
    """Return whether neither `error` nor any of its causes quotes a private text."""
    private, seen = tuple(private), error
    while True:
        said = " ".join(str(seen).split())
        if _hidden(said, private) != said:
            return False
        following = seen.__cause__ or seen.__context__
        if following is None:
            return True
        seen = following


def _hidden(text: str, private: Iterable[str]) -> str:
    for secret in private:
        plain = " ".join(secret.split())
        for form in {plain, json.dumps(plain)[1:-1], json.dumps(plain, ensure_ascii=False)[1:-1]}:
            text = _without(text, form)
    return text


def _without(text: str, secret: str) -> str:
    """Return `text` with `secret` hidden, also where only a beginning of `secret` is in it.

    A server or a proxy may have cut the text off. A beginning is hidden if it has a third of a key, or 40 characters of
    a prompt. At the end of the text, where only little may be left, four characters are enough.
    """
    if len(secret) < _LEAST:
        return text
    head = secret[: min(max(len(secret) // 3, 8), 40)]
    out, begin = [], 0
    while (found := text.find(head, begin)) >= 0:
        end = found + len(head)
        while end < len(text) and end - found < len(secret) and text[end] == secret[end - found]:
            end += 1
        out += [text[begin:found], "***"]
        begin = end
    text = "".join(out) + text[begin:]
    for length in range(min(len(head), len(text)), _LEAST - 1, -1):
        if text.endswith(secret[:length]):
            return text[:-length] + "***"
    return text


_LEAST = 4
"""Minimum length of a text that is hidden. Shorter texts occur in ordinary sentences."""


def _phrase(status: int) -> str:
    import http

    try:
        return " " + http.HTTPStatus(status).phrase
    except ValueError:
        return ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, in either form (RFC 9110, 10.2.3). None if there is none."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
        return max(date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
