# SPDX-License-Identifier: Apache-2.0
"""Access checks: the key, the Host and Origin headers, and the size of a body.

A web page in a user's browser can send requests to a server on the same machine. The Origin header shows which page
sent a request. The Host header shows an attack with a host name that resolves to 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from .._calls import strict_json
from .errors import RequestError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")

_NAME = re.compile(r"[a-z0-9_.-]+")
_WEB_ORIGIN = re.compile(r"(https?)://([a-z0-9_.-]+|\[[^\]/@]+\])(?::([0-9]*))?/?")
_OTHER_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*://[a-z0-9_.:-]+)/?", re.ASCII | re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "https": 443}


def host_name(text: str) -> str:
    """Return a host name in the form in which `Guard` compares it with the Host header.

    Args:
        text: A name, an IPv4 address, or an IPv6 address in brackets, without a port.

    Raises:
        ValueError: The text is something else, so no Host header could match it.
    """
    name = _canonical(text.lower())
    if name is None:
        raise ValueError(f"{text!r} must be a host name without scheme and port, such as my-server or [::1]")
    return name


def web_origin(text: str) -> str:
    """Return an origin in the form in which browsers send it: in lower case, without the default port and final slash.

    Args:
        text: A scheme, a host name and possibly a port; or "null", which browsers send for pages without an origin,
            such as local files.

    Raises:
        ValueError: The text is something else, so no Origin header could match it.
    """
    if text in ("null", "file://"):
        return text
    if not text.lower().startswith(("http:", "https:")):
        if other := _OTHER_ORIGIN.fullmatch(text):  # for example of a browser extension
            return other[1]
    elif web := _WEB_ORIGIN.fullmatch(text.lower()):
        scheme, name, port = web[1], _canonical(web[2]), int(web[3] or _DEFAULT_PORTS[web[1]])
        if name is not None and port < 2**16:
            return f"{scheme}://{name}" if port == _DEFAULT_PORTS[scheme] else f"{scheme}://{name}:{port}"
    raise ValueError(
        f"{text!r} must be one web origin: a scheme, a host name in ASCII and possibly a port, such as "
        "https://my-app:8443"
    )


def _canonical(name: str) -> str | None:
    """Return a host name in lower case with an IPv6 address in its shortest form. None: it is not a host name."""
    if name.startswith("[") and name.endswith("]"):
        try:
            return f"[{ipaddress.IPv6Address(name[1:-1])}]"
        except ValueError:
            return None
    return name if _NAME.fullmatch(name) else None


class Guard:
    """ASGI middleware that answers requests that are not allowed with an error.

    Args:
        app: The application, which gets the other requests.
        key: The key that a client must send as a bearer token or as `x-api-key`. None: no key is needed.
        hosts: Host names that are accepted in the Host header, as `host_name` returns them. None: any.
        origins: Origins of web pages that may send requests, as `web_origin` returns them.
    """

    def __init__(self, app: ASGIApp, *, key: str | None, hosts: Iterable[str] | None, origins: Iterable[str]) -> None:
        self._app = app
        self._key = key.encode() if key is not None else None
        self._hosts = None if hosts is None else frozenset(hosts)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            problem = self._problem(scope["path"], Headers(scope=scope), scope["method"])
            if problem is not None:
                await problem.response(scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _problem(self, path: str, headers: Headers, method: str) -> RequestError | None:
        host = headers.get("host", "").lower()
        name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
        if self._hosts is not None and _canonical(name) not in self._hosts:
            return RequestError(403, "this host name is not served: start the server with --allow-host NAME")
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins:
            return RequestError(403, "requests from this web page are not allowed: start the server with --cors ORIGIN")
        if path == "/health" or self._key is None or method == "OPTIONS":
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        sent = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if hmac.compare_digest(sent.encode(), self._key):
            return None
        why = "the API key is wrong" if sent else "send the server's API key: Authorization: Bearer KEY"
        return RequestError(401, why, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def load_wait(request: Request) -> float | None:
    """Return the seconds that a client waits for a model to be loaded (`Prefer: wait=0`, RFC 7240). None: no limit.

    Raises:
        RequestError: The header is not a whole number of seconds.
    """
    for preference in request.headers.get("prefer", "").split(","):
        name, _, value = preference.partition("=")
        if name.strip().lower() == "wait":
            seconds = value.strip()
            if not (seconds.isascii() and seconds.isdigit()):
                raise RequestError(400, "the header Prefer: wait=SECONDS needs a whole number of seconds")
            return min(float(seconds), 1e6)
    return None


async def read_json(request: Request, most: int, seconds: float) -> object:
    """Read a body as JSON.

    Args:
        request: The request.
        most: Maximum size of the body, in bytes.
        seconds: Maximum time for the body to arrive.

    Raises:
        RequestError: The body is too large (413), is not JSON (400), or did not arrive in time (408).
    """
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > most:
        raise _too_large(most)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise _too_large(most)
    except TimeoutError:
        why = f"the body was not sent within {seconds:g} seconds"
        raise RequestError(408, why, headers={"connection": "close"}) from None
    try:
        return strict_json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {error}") from None


def _too_large(most: int) -> RequestError:
    # The rest of the body is not read: the connection can't be used for another request.
    return RequestError(413, f"the body is larger than {most} bytes", headers={"connection": "close"})
