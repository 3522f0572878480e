# SPDX-License-Identifier: Apache-2.0
"""What a server, or the way to it, did wrong: as our errors, and whether to try again."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from ...errors import ContextLengthExceededError, GenerationError, ServerError

MAX_ERROR_BYTES = 64 << 10
"""What is read of the body of a refusal."""

_SHOWN = 300
"""Characters of it that a message quotes."""

_GATEWAY = (502, 503, 504)


@dataclass(frozen=True)
class Failure:
    """An attempt that brought no answer.

    `again`: "no"; "soon", after a little while, a few times; "at once", and then soon, for a kept
    connection that the server had given up; or "loading", as long as the server says that it
    loads. `wait` is the pause in seconds that the server asks for.
    """

    error: GenerationError
    again: str = "no"
    wait: float | None = None


def of_transport(error: Exception, url: str, *, begun: bool = False) -> Failure:
    """A connection that could not be made or broke. `begun`: the answer had begun."""
    said = _brief(str(error)) or type(error).__name__
    if isinstance(error, httpx2.ConnectTimeout):
        return Failure(ServerError(f"{url}: no connection within connect_timeout. Is the address right?"))
    if isinstance(error, httpx2.ProxyError):
        return Failure(ServerError(f"{url}: the proxy refused: {said}. Check HTTP_PROXY, HTTPS_PROXY and NO_PROXY"))
    if isinstance(error, httpx2.ConnectError):
        advice = "Is the server running, and the address right?"
        if "CERTIFICATE" in said.upper() or "SSL" in said.upper():
            return Failure(ServerError(f"{url}: no trusted connection: {said}. ca_bundle names certificates to trust"))
        return Failure(ServerError(f"{url}: no connection: {said}. {advice}"), "soon")
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
        return Failure(ServerError(f"{url}: the request can't be sent: {said}"))
    if begun:
        return Failure(ServerError(f"{url}: the answer broke off: {said}"))
    return Failure(ServerError(f"{url}: the server closed the connection without an answer: {said}"), "at once")


def of_status(url: str, status: int, headers: Mapping[str, str], body: bytes, private: Iterable[str] = ()) -> Failure:
    """An answer that is no success. What is `private` (keys, prompts) is taken out of what it quotes."""
    content = _json(body)
    said = _hidden(_message(content, body), private)
    head = f"{url}: {status}{_phrase(status)}"
    about = f"{head}: {said}" if said else head
    if 300 <= status < 400:
        target = _hidden(_brief(headers.get("location", "")), private)
        advice = "redirects are not followed, for the key belongs to this server alone: use the address itself"
        return Failure(ServerError(f"{head} to {target or 'nowhere'}: {advice}", status=status))
    if (too_long := _too_long(content)) is not None:
        return Failure(too_long)
    if status in (401, 403):
        return Failure(ServerError(f"{about}. Check the api_key", status=status))
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


def of_event(url: str, error: Any, private: Iterable[str] = ()) -> GenerationError:
    """An error that the server reports in the middle of its answer."""
    if (too_long := _too_long({"error": error})) is not None:
        return too_long
    code = error.get("code") if isinstance(error, Mapping) else None
    said = _hidden(_message({"error": error}, b""), private)
    status = code if isinstance(code, int) and 400 <= code < 600 else None
    return ServerError(f"{url}: the server failed: {said or 'it does not say why'}", status=status)


class NonsenseError(ServerError):
    """An answer that is not what the protocol says."""

    def __init__(self, url: str, what: str) -> None:
        super().__init__(f"{url}: {what}: is this a llama-server or an OpenAI-compatible server?")


# ---------------------------------------------------------------- what a body says


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _message(content: Any, body: bytes) -> str:
    """The message of OpenAI's, FastAPI's and others' error bodies, else the body's beginning."""
    if isinstance(content, Mapping):
        for key in ("error", "detail", "message"):
            found = _sentence(content.get(key))
            if found:
                return found
        return ""
    return _brief(re.sub(r"<[^>]{0,200}>", " ", body[:4096].decode("utf-8", "replace")))


def _sentence(value: Any) -> str:
    if isinstance(value, str):
        return _brief(value)
    if isinstance(value, Mapping):
        # "input" and the like repeat the request, so only the sentence is taken
        return _brief(str(value.get("message") or value.get("msg") or value.get("type") or ""))
    if isinstance(value, list):
        return _brief("; ".join(filter(None, map(_sentence, value[:3]))))
    return ""


def _brief(text: str) -> str:
    text = " ".join(text.split())
    text = "".join(one if one.isprintable() else "\ufffd" for one in text)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _hidden(text: str, private: Iterable[str]) -> str:
    for secret in private:
        plain = " ".join(secret.split())
        for form in (plain, json.dumps(plain)[1:-1]):
            # Where only its beginning is quoted, that is not to be read either.
            for piece in {form, form[:_SHOWN], form[:40]}:
                if len(piece) >= 4:
                    text = text.replace(piece, "***")
    return text


def _too_long(content: Any) -> ContextLengthExceededError | None:
    """llama-server says both numbers; the others' sentences have them."""
    error = content.get("error") if isinstance(content, Mapping) else None
    if not isinstance(error, Mapping):
        return None
    prompt, context = error.get("n_prompt_tokens"), error.get("n_ctx")
    if isinstance(prompt, int) and isinstance(context, int):
        return ContextLengthExceededError(prompt, context)
    said = str(error.get("message") or "")
    if match := _SENTENCE.search(said):
        context, whole, prompt = int(match[1]), int(match[2]), match[3]
        return ContextLengthExceededError(int(prompt or whole), context)
    return None


_SENTENCE = re.compile(
    r"maximum context length is (\d{1,9}) tokens.{0,80}?(\d{1,9}) tokens"
    r"(?:\s*\((\d{1,9}) in (?:the messages|your prompt))?",
    re.DOTALL,
)
"""OpenAI's, which vLLM and llama-cpp-python say too."""


def _phrase(status: int) -> str:
    import http

    try:
        return " " + http.HTTPStatus(status).phrase
    except ValueError:
        return ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from either form of Retry-After (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
