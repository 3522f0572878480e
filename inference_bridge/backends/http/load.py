# SPDX-License-Identifier: Apache-2.0
"""Loads the model at a URL."""

from __future__ import annotations

import base64
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import httpx2

from ...errors import ModelLoadError, ModelNotFoundError, ServerError
from ...options import DEFAULTS, GenerateConfig, LoadConfig
from . import bridge_model
from .detection import server_info
from .facts import ServerFacts
from .model import HttpModel
from .pooled_models import HttpEmbeddingModel, HttpRankModel
from .routing import same_model
from .routing.pool import Pool
from .transport.connection import CONNECT_TIMEOUT, FIRST_TOKEN_TIMEOUT, Connection

_MOST_BASES = 5

_DOWN = (502, 503, 504)
"""Statuses of a server, or of a proxy before it, that may be available again later."""

_NOT_HERE = (404, 405)
"""Statuses of a server that does not have the path."""


def load(source: str, config: LoadConfig) -> HttpModel:
    """Load the model at a URL. The server is asked for its kind and its capabilities.

    Args:
        source: The address of a server, of its API ("…/v1"), or of an endpoint of it ("…/v1/chat/completions"). For
            several servers of one model: their addresses, separated by commas or white space.
        config: The load options.

    Returns:
        The model, which owns its connections.

    Raises:
        TypeError: `extra` is a list.
        ValueError: A part of `source` is not the URL of a server, or a key or header has a character that is not
            allowed in a request.
        ServerError: No server can be reached, or a server refuses the request.
        ModelNotFoundError: The server has several models and `model` is not set; or the `ca_bundle` does not exist.
        ModelLoadError: The servers have different models, or the `ca_bundle` contains no certificates.
    """
    extra = config.extra or {}
    if not isinstance(extra, Mapping):
        raise TypeError("extra must be a mapping of fields for the body of every request, not a list")
    urls = re.split(r"[\s,]+(?=https?://)", source.strip(), flags=re.IGNORECASE)
    connect: Callable[[], Connection] | Pool
    if len(urls) > 1:
        connect, facts = _pool(urls, config)
    else:
        connection, facts = _found(urls[0], config)

        def connect() -> Connection:
            return connection

    kind: type[HttpModel]
    if facts.bridge is not None:
        kind = bridge_model.kind_of(facts)
    else:
        kind = HttpEmbeddingModel if "embeddings" in facts.capabilities else HttpModel
        kind = HttpRankModel if "rerank" in facts.capabilities else kind
    model = kind(
        "http",
        connect,
        facts=facts,
        extra=extra,
        unset=GenerateConfig() if config.defaults == "server" else DEFAULTS,
        slots=config.parallel_slots or 0,
    )
    model.connection()  # from now on the model owns the connection, and closes it
    return model


def _pool(urls: Sequence[str], config: LoadConfig) -> tuple[Pool, ServerFacts]:
    """Return the servers at `urls`, and their common properties. A server that can't be reached is retried later."""
    connections: list[Connection] = []
    found: dict[str, ServerFacts] = {}
    missing: dict[int, ServerError] = {}
    try:
        for index, url in enumerate(urls):
            try:
                connection, facts = _found(url, config)
            except ServerError as error:
                if error.status is not None and error.status not in _DOWN:
                    raise
                missing[index] = error
                connection = _connect(_bases(_parsed(url))[0], config)
            else:
                found[connection.base_url] = facts
            if any(connection.base_url == other.base_url for other in connections):
                connection.close()
                raise ValueError(f"the source names {connection.base_url} twice: name each server once")
            connections.append(connection)
        if not found:
            raise missing[0]
        combined = same_model.combined(found)
    except BaseException:
        for connection in connections:
            connection.close()
        raise
    typical = max(combined.slots // len(found), 1)
    slots = [found[one.base_url].slots if one.base_url in found else typical for one in connections]
    pool = Pool(connections, slots)
    for index in missing:
        pool.failed(index)
    return pool, replace(combined, slots=sum(slots))


def _found(url: str, config: LoadConfig) -> tuple[Connection, ServerFacts]:
    """Return the connection to the server at `url`, and its properties. The parent paths of `url` are tried too."""
    tried: list[str] = []
    for base in (bases := _bases(_parsed(url))):
        connection = _connect(base, config)
        tried.append(connection.base_url)
        try:
            return connection, server_info.ask(connection, config.model)
        except BaseException as error:
            connection.close()
            if not isinstance(error, ServerError) or error.status not in _NOT_HERE:
                raise
            if len(tried) == len(bases):
                where = "" if len(tried) == 1 else f" (tried {', '.join(tried)})"
                raise ServerError(f"{error}{where}", status=error.status) from None
    raise AssertionError("a URL has at least one base")


def _bases(parsed: httpx2.URL) -> list[httpx2.URL]:
    """Return the possible addresses of the server: that of `parsed` without its endpoint, then its parent paths."""
    path = _ENDPOINT.sub("", parsed.path.rstrip("/"))
    path = re.sub(r"/v1$", "", path, flags=re.IGNORECASE).rstrip("/")
    paths = [path]
    while path and len(paths) < _MOST_BASES:
        path = path.rpartition("/")[0]
        paths.append(path)
    return [parsed.copy_with(path=one or "/", query=None, fragment=None) for one in paths]


_ENDPOINT = re.compile(
    r"/(chat/completions|completions?|embeddings?|models|responses|rerank|score|tokenize|detokenize|infill|props|slots"
    r"|health|metrics|apply-template|docs|openapi\.json|index\.html|api/(chat|generate|tags|show|version|embed))$",
    re.IGNORECASE,
)
"""Endpoints at the end of addresses that people copy from an example, the server's page or its log."""


def _connect(base: httpx2.URL, config: LoadConfig) -> Connection:
    headers = {name: _sendable(value, f"the header {name!r}") for name, value in (config.headers or {}).items()}
    if not all(re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) for name in headers):
        raise ValueError("headers has a name that is not the name of a header")
    secrets: tuple[str, ...] = ()
    if base.userinfo:
        if config.api_key is not None:
            raise ValueError("the URL has credentials in it, and api_key is set too: use one of them")
        headers["Authorization"] = "Basic " + base64.b64encode(_credentials(base)).decode("ascii")
        secrets = (base.password,) if base.password else ()
    if config.ca_bundle is not None:
        _check_bundle(config.ca_bundle)
    return Connection(
        str(base.copy_with(userinfo=None)).rstrip("/"),
        api_key=None if config.api_key is None else _sendable(config.api_key, "api_key"),
        headers=headers,
        more_secrets=secrets,
        ca_bundle=config.ca_bundle,
        connect_timeout=config.connect_timeout or CONNECT_TIMEOUT,
        first_token_timeout=config.first_token_timeout or FIRST_TOKEN_TIMEOUT,
    )


def _sendable(value: str, what: str) -> str:
    """Return `value` without white space at both ends, such as a final newline. No error message contains it."""
    value = value.strip()
    if not re.fullmatch(r"[\x20-\x7e]+", value):
        why = "it is empty" if not value else "it has a line break or another character that is not allowed in a header"
        raise ValueError(f"{what} can't be sent: {why}")
    return value


def _parsed(url: str) -> httpx2.URL:
    try:
        parsed = httpx2.URL(url.strip())
    except httpx2.InvalidURL as error:
        raise ValueError(f"this is not the URL of a server: {error}") from None
    if not parsed.host:
        raise ValueError("this is not the URL of a server: it has no host")
    if parsed.query or parsed.fragment:
        raise ValueError("the URL of a server must not contain ? or #: put what a request needs into headers or extra")
    return parsed


def _credentials(url: httpx2.URL) -> bytes:
    return f"{url.username}:{url.password}".encode()


def _check_bundle(path: str) -> None:
    if not os.path.exists(path):
        raise ModelNotFoundError(f"the ca_bundle {path} does not exist")
    try:
        if os.path.isfile(path):
            ssl.create_default_context(cafile=path)
    except ssl.SSLError as error:
        raise ModelLoadError(f"the ca_bundle {path} contains no certificates: {error.reason}") from None
