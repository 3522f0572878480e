# SPDX-License-Identifier: Apache-2.0
"""Where a server is, how it is spoken to, and the pooled clients that do."""

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
"""Seconds until a connection stands, where nothing else is said."""

FIRST_TOKEN_TIMEOUT = 600.0
"""Seconds until an answer begins, a server's loading and a long prompt's evaluation included."""

_KEPT = httpx2.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=30)


@dataclass(frozen=True)
class Connection:
    """A server's address and the way to it. It owns the clients, made when first used.

    base_url             http(s)://host[:port][/path], without a final slash; no credentials in it
    api_key              sent as `Authorization: Bearer …`
    headers              sent with every request
    uds                  the path of a UNIX socket; base_url's host is then only a name
    more_secrets         what no message may quote either
    check_peer           called with every new connection to `uds`, before anything is sent: raises OSError to refuse it
    ca_bundle            a file or directory of certificates to trust instead of the system's
    connect_timeout, first_token_timeout  seconds; the second bounds every silence of the server too
    trust_env            whether HTTP(S)_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR count

    Redirects are never followed, so that the key goes to this server alone.
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
        """What no message may quote: the key, and the headers' values."""
        # A value may be "Bearer KEY", or "a=b; session=KEY" of a cookie.
        values = (part for value in self.headers.values() for part in (value, *re.split(r"[\s;,=]+", value)))
        keys = (*((self.api_key,) if self.api_key else ()), *self.more_secrets)
        return (*(value for value in values if len(value) >= 8), *keys)

    def client(self) -> httpx2.Client:
        """The one client for threads."""
        with self._clients.lock:
            if self._clients.plain is None:
                options = self._transport_options()
                self._clients.plain = httpx2.Client(transport=Transport(**options), **self._client_options())
            return self._clients.plain

    async def async_client(self) -> httpx2.AsyncClient:
        """The client of the event loop that runs: a connection belongs to the loop it was made on."""
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
        """Close every client, from any thread; those of event loops on their loops, as soon as they run."""
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
        # A compressing proxy between would hold tokens back until it has a block of them.
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
