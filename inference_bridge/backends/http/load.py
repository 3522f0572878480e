# SPDX-License-Identifier: Apache-2.0
"""From a URL to a TextModel."""

from __future__ import annotations

import base64
import os
import re
import ssl
from collections.abc import Mapping

import httpx2

from ...errors import ModelLoadError, ModelNotFoundError
from ...options import LoadConfig
from . import server_info
from .connection import CONNECT_TIMEOUT, FIRST_TOKEN_TIMEOUT, Connection
from .model import HttpEmbeddingModel, HttpModel


def load(url: str, config: LoadConfig) -> HttpModel:
    """The model at `url`, which is asked what it is.

    Raises ValueError for what is no URL, ServerError where the server can't be reached or refuses,
    ModelNotFoundError where it has several models and `model` is not set.
    """
    extra = config.extra or {}
    if not isinstance(extra, Mapping):
        raise TypeError("extra must be a mapping of fields for the body of every request, not a list")
    connection = connect(url, config)
    try:
        facts = server_info.ask(connection, config.model)
    except BaseException:
        connection.close()
        raise
    kind = HttpEmbeddingModel if "embeddings" in facts.capabilities else HttpModel
    model = kind(
        "http",
        lambda: connection,
        facts=facts,
        extra=extra,
        slots=config.parallel_slots or 0,
    )
    model.connection()  # which is then the model's to close
    return model


def connect(url: str, config: LoadConfig) -> Connection:
    """The connection to `url`: the address of a server, or of its API ("…/v1")."""
    parsed = _parsed(url)
    headers = dict(config.headers or {})
    if parsed.userinfo:
        if config.api_key is not None:
            raise ValueError("the URL has credentials in it, and api_key is set too: use one of them")
        headers["Authorization"] = "Basic " + base64.b64encode(_credentials(parsed)).decode("ascii")
    if config.ca_bundle is not None:
        _check_bundle(config.ca_bundle)
    plain = str(parsed.copy_with(userinfo=None, query=None, fragment=None)).rstrip("/")
    return Connection(
        re.sub(r"/v1$", "", plain),
        api_key=config.api_key,
        headers=headers,
        ca_bundle=config.ca_bundle,
        connect_timeout=config.connect_timeout or CONNECT_TIMEOUT,
        first_token_timeout=config.first_token_timeout or FIRST_TOKEN_TIMEOUT,
    )


def _parsed(url: str) -> httpx2.URL:
    try:
        parsed = httpx2.URL(url.strip())
    except httpx2.InvalidURL as error:
        raise ValueError(f"this is no URL of a server: {error}") from None
    if not parsed.host:
        raise ValueError("this is no URL of a server: it names no host")
    if parsed.query or parsed.fragment:
        raise ValueError("a server's URL has no ? and no #: put what a request needs into headers or extra")
    return parsed


def _credentials(url: httpx2.URL) -> bytes:
    return f"{url.username}:{url.password}".encode()


def _check_bundle(path: str) -> None:
    if not os.path.exists(path):
        raise ModelNotFoundError(f"there is no ca_bundle at {path}")
    try:
        if os.path.isfile(path):
            ssl.create_default_context(cafile=path)
    except ssl.SSLError as error:
        raise ModelLoadError(f"the ca_bundle {path} has no certificates in it: {error.reason}") from None
