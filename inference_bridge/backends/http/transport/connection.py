# SPDX-License-Identifier: Apache-2.0
"""The connection to a server: its address, its settings, and the pooled HTTP clients."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from .sockets import AsyncTransport, Transport

CONNECT_TIMEOUT = 5.0
"""Default maximum of seconds until a connection is made."""

FIRST_TOKEN_TIMEOUT = 600.0
"""Default maximum of seconds until an answer begins: the server may have to load a model or evaluate a long prompt."""

_KEPT = httpx2.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=30)


@dataclass(frozen=True)
class Connection:
    """The address of a server, and how to connect to it. It owns the clients, which are made when they are first used.

    Redirects are never followed, so that the key is sent only to this server.

    Attributes:
        base_url: http(s)://host[:port][/path], without credentials and without a final slash.
        api_key: Sent as `Authorization: Bearer …`.
        headers: Sent with every request.
        more_secrets: Further texts that no message may quote.
        uds: The path of a UNIX socket. The host in `base_url` is then only a name.
        check_peer: Called with every new connection to `uds`, before anything is sent. It raises OSError to refuse it.
        ca_bundle: A file or directory of certificates that are trusted instead of the system's.
        connect_timeout: Maximum of seconds until a connection is made.
        first_token_timeout: Maximum of seconds until an answer begins, and between two events of an answer.
        trust_env: Whether HTTP(S)_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR are used.
    """

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    more_secrets: tuple[str, ...] = field(default=(), repr=False)
    uds: str | None = None
    check_peer: Callable[[Any], None] | None = field(default=None, repr=False, compare=False)
    ca_bundle: str | None = None
    connect_timeout: float = CONNECT_TIMEOUT
    first_token_timeout: float = FIRST_TOKEN_TIMEOUT
    trust_env: bool = True
    _clients: _Clients = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))
        object.__setattr__(self, "_clients", _Clients())

    @property
    def secrets(self) -> tuple[str, ...]:
        """The texts that no message may quote: the key, and the values of the headers."""
        # A value may be "Bearer KEY", or "a=b; session=KEY" of a cookie.
        values = (part for value in self.headers.values() for part in (value, *re.split(r"[\s;,=]+", value)))
        keys = (*((self.api_key,) if self.api_key else ()), *self.more_secrets)
        return (*(value for value in values if len(value) >= 8), *keys)

    def client(self) -> httpx2.Client:
        """Return the client that all threads share."""
        with self._clients.lock:
            if self._clients.plain is None:
                options = self._transport_options()
                self._clients.plain = httpx2.Client(transport=Transport(**options), **self._client_options())
            return self._clients.plain

    async def async_client(self) -> httpx2.AsyncClient:
        """Return the client of the running event loop. A connection belongs to the loop on which it was made."""
        loop = asyncio.get_running_loop()
        with self._clients.lock:
            held = self._clients.of_loops.get(loop)
            if held is not None:
                return held.client
            transport = AsyncTransport(**self._transport_options())
            client = httpx2.AsyncClient(transport=transport, **self._client_options())
            held = self._clients.of_loops[loop] = _Held(self._clients, client)
        await anext(held.guard)
        return client

    def close(self) -> None:
        """Close every client. May be called from any thread. The client of an event loop is closed on that loop."""
        with self._clients.lock:
            plain, self._clients.plain = self._clients.plain, None
            held = list(self._clients.of_loops.items())
            self._clients.of_loops.clear()
        if plain is not None:
            plain.close()
        for loop, one in held:
            self._clients.closing[loop] = one.closed
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its shutdown closed the client
                loop.call_soon_threadsafe(_close_soon, one)

    async def aclose(self) -> None:
        """`close()`, and wait until the client of this event loop is closed, whoever closes it."""
        self.close()
        closed = self._clients.closing.get(asyncio.get_running_loop())
        if closed is not None:
            await closed.wait()

    def _client_options(self) -> dict[str, Any]:
        # A proxy that compresses answers would delay tokens until it has a whole block of them.
        headers = {"Accept-Encoding": "identity", "User-Agent": "inference-bridge", **self.headers}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        timeout = httpx2.Timeout(None, connect=self.connect_timeout)
        return {"headers": headers, "timeout": timeout, "follow_redirects": False, "trust_env": self.trust_env}

    def _transport_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"limits": _KEPT, "trust_env": self.trust_env}
        if self.uds is not None:
            return options | {
                "uds": self.uds,
                "verify": False,
                "check_peer": self.check_peer,
            }  # a host of its own: no certificate is involved
        if self.base_url.startswith("https:"):
            options["verify"] = self._tls()
        else:
            options["verify"] = False  # spares reading the system's certificates
        if proxy := self._proxy():
            options["proxy"] = proxy
        return options

    def _tls(self) -> ssl.SSLContext:
        import os

        with self._clients.lock_tls:
            if self._clients.tls is None:
                bundle = self.ca_bundle
                if bundle is None:
                    self._clients.tls = httpx2.create_ssl_context(trust_env=self.trust_env)
                elif os.path.isdir(bundle):
                    self._clients.tls = ssl.create_default_context(capath=bundle)
                else:
                    self._clients.tls = ssl.create_default_context(cafile=bundle)
            return self._clients.tls

    def _proxy(self) -> str | None:
        """The proxy that the environment (on macOS and Windows: the system) names for this server."""
        if not self.trust_env:
            return None
        from urllib.request import getproxies, proxy_bypass

        url = httpx2.URL(self.base_url)
        proxies = getproxies()
        proxy = proxies.get(url.scheme) or proxies.get("all")
        port = url.port or (443 if url.scheme == "https" else 80)
        if not proxy or proxy_bypass(url.host) or proxy_bypass(f"{url.host}:{port}"):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"


class _Clients:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.lock_tls = threading.Lock()
        self.tls: ssl.SSLContext | None = None
        self.plain: httpx2.Client | None = None
        self.of_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Held] = weakref.WeakKeyDictionary()
        self.closing: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Event] = weakref.WeakKeyDictionary()


class _Held:
    """The client of one event loop. `guard` is begun there, `closed` set when the client is."""

    def __init__(self, clients: _Clients, client: httpx2.AsyncClient) -> None:
        self.client = client
        self.closed = asyncio.Event()
        self.guard = _until_shutdown(clients, client, self.closed)


async def _until_shutdown(clients: _Clients, client: httpx2.AsyncClient, closed: asyncio.Event) -> AsyncGenerator[None]:
    """Closes the client when its loop ends: before that, asyncio.run() closes the generators begun on it."""
    try:
        yield
    finally:
        clients.of_loops.pop(asyncio.get_running_loop(), None)
        try:
            await client.aclose()
        finally:
            closed.set()


def _close_soon(held: _Held) -> None:
    task = asyncio.ensure_future(held.guard.aclose())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


_closing: set[asyncio.Future[None]] = set()
