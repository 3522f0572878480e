# SPDX-License-Identifier: Apache-2.0
"""The ASGI application: its routes and its pool of models."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from .. import __version__
from ..backends.http import bridge_format
from ..errors import ModelNotFoundError, UnsupportedError
from ..interfaces import EmbeddingModel, StatsModel
from ..model import TextModel
from ..observability import prometheus
from . import bridge
from .anthropic import routes as anthropic
from .decisions.routes import DecisionRoutes
from .description import description
from .errors import RequestError, as_request_error
from .events import JSONAnswer
from .guard import Guard, host_name, load_wait, read_json, web_origin
from .openai import generation, tokens
from .openai.requests import embeddings_request
from .openai.rerank import rerank
from .pool import ModelPool
from .responses.routes import ResponseRoutes
from .responses.store import ResponseStore

MAX_BODY = 32 << 20
"""Maximum size of a body in bytes, which is enough for some images."""


def app(
    models: Mapping[str, TextModel | str] | Sequence[str] = (),
    *,
    any_listed: Callable[[], Iterable[str]] | None = None,
    key: str | None = None,
    hosts: Iterable[str] | None = None,
    origins: Iterable[str] = (),
    keep_alive: float | None = None,
    max_models: int | None = None,
    memory_limit: int | None = None,
    max_queue: int = 64,
    max_body: int = MAX_BODY,
    body_seconds: float = 60.0,
    preload: bool = False,
) -> Starlette:
    """Make an ASGI application that serves models with OpenAI's and Anthropic's APIs.

    Args:
        models: Sources for `load_model`, which are also the names that clients ask for; or a mapping of names to
            sources or to loaded models. The caller closes the models that it has loaded.
        any_listed: Returns the names of further models that clients may ask for. None: only `models` are served.
        key: The key that clients must send. None: no key is needed.
        hosts: Host names that are accepted in the Host header, without ports. None: any.
        origins: Origins of web pages that may send requests, such as "https://example.com".
        keep_alive: Seconds that an unused model stays loaded. None: until the application ends.
        max_models: Maximum number of models loaded at once. A model in use is not unloaded, so there may be more.
        memory_limit: Maximum size of the weights of all loaded models, in bytes. A load waits until there is room.
        max_queue: Maximum number of requests that wait for one model.
        max_body: Maximum size of a request's body, in bytes.
        body_seconds: Seconds in which a request's body must have arrived.
        preload: Load the named models when the application starts.

    Returns:
        The application. Run its lifespan, which closes the models that the application has loaded.

    Raises:
        TypeError: `models` is a str, or has a value that is neither a str nor a TextModel; `hosts` or `origins` is a
            str.
        ValueError: `hosts` or `origins` has an entry that no request could match.
    """
    if isinstance(models, str):
        raise TypeError(f"models must be a mapping or a sequence of sources, such as [{models!r}], not a str")
    if isinstance(hosts, str) or isinstance(origins, str):
        raise TypeError("hosts and origins must each be an iterable of str, such as a list, not a str")
    named = dict(models) if isinstance(models, Mapping) else {source: source for source in models}
    for name, model in named.items():
        if not isinstance(name, str) or not isinstance(model, str | TextModel):
            raise TypeError(f"models must map str to str or TextModel, not {name!r} to {type(model).__name__}")
    sources = {name: model for name, model in named.items() if isinstance(model, str)}
    given = {name: model for name, model in named.items() if isinstance(model, TextModel)}
    pool = ModelPool(
        sources,
        given,
        listed=any_listed,
        keep_alive=keep_alive,
        most=max_models,
        memory_limit=memory_limit,
        queue=max_queue,
    )
    return application(
        pool,
        default=next(iter(named), None),
        preload=list(sources) if preload else (),
        key=key,
        hosts=hosts,
        origins=origins,
        max_body=max_body,
        body_seconds=body_seconds,
    )


def application(
    pool: ModelPool,
    *,
    default: str | None = None,
    more_routes: Sequence[BaseRoute] = (),
    preload: Iterable[str] = (),
    key: str | None = None,
    hosts: Iterable[str] | None = None,
    origins: Iterable[str] = (),
    max_body: int = MAX_BODY,
    body_seconds: float = 60.0,
) -> Starlette:
    """Make the ASGI application for a pool, which its lifespan closes. See `app` for the other arguments.

    Args:
        pool: The models.
        default: The model that answers requests for "jev-latest", the System One API's default. None: no model.
        more_routes: Further routes.
        preload: Names of models to load when the application starts.
    """
    routes = _Routes(pool, max_body, body_seconds)
    responses = ResponseRoutes(ResponseStore())
    decisions = DecisionRoutes(default)

    async def described(_: Request) -> Response:
        return JSONResponse(description(__version__, key is not None))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            for name in preload:
                async with pool.use(name):
                    pass
            yield
        finally:
            await pool.aclose()

    allowed = [web_origin(one) for one in origins]
    names = None if hosts is None else [host_name(one) for one in hosts]
    middleware = [Middleware(Guard, key=key, hosts=names, origins=allowed)]
    if allowed:
        cors = Middleware(CORSMiddleware, allow_origins=allowed, allow_methods=["GET", "POST"], allow_headers=["*"])
        middleware.insert(0, cors)
    return Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/metrics", routes.metrics),
            Route("/openapi.json", described),
            Route("/v1/models", routes.models),
            Route("/v1/models/{name:path}", routes.model),
            Route("/v1/chat/completions", routes.answered(generation.chat), methods=["POST"]),
            Route("/v1/completions", routes.answered(generation.text), methods=["POST"]),
            Route("/tokenize", routes.answered(tokens.tokenize), methods=["POST"]),
            Route("/detokenize", routes.answered(tokens.detokenize), methods=["POST"]),
            Route("/v1/responses", routes.answered(responses.create), methods=["POST"]),
            Route("/v1/responses/{id}", responses.one, methods=["GET", "DELETE"]),
            Route("/v1/messages", routes.answered(anthropic.messages), methods=["POST"]),
            Route("/v1/messages/count_tokens", routes.answered(anthropic.count_tokens), methods=["POST"]),
            Route("/v1/systemone", routes.answered(decisions.systemone), methods=["POST"]),
            Route("/v1/decisions", routes.answered(decisions.decisions), methods=["POST"]),
            Route("/v1/rerank", routes.answered(rerank), methods=["POST"]),
            Route("/v1/embeddings", routes.answered(_embeddings), methods=["POST"]),
            Route(f"{bridge_format.PREFIX}{{operation}}", routes.answered(bridge.answer), methods=["POST"]),
            *more_routes,
        ],
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={404: _not_found, 405: _not_found},
    )


Answer = Callable[[Request, object, ModelPool], Awaitable[Response]]


class _Routes:
    def __init__(self, pool: ModelPool, max_body: int, body_seconds: float) -> None:
        self._pool = pool
        self._max_body = max_body
        self._body_seconds = body_seconds

    def answered(self, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        """Make a route from a function that takes the parsed body. Its errors have the format of the route's API."""

        async def route(request: Request) -> Response:
            try:
                return await answer(request, await read_json(request, self._max_body, self._body_seconds), self._pool)
            except Exception as error:
                return as_request_error(error).response(request.url.path)

        return route

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(self, _: Request) -> Response:
        models = {name: model for name, model in self._pool.loaded().items() if isinstance(model, StatsModel)}
        kept = {name: model for name, model in models.items() if "stats" in getattr(model, "capabilities", ())}
        return PlainTextResponse(prometheus.exposition(kept), media_type=prometheus.CONTENT_TYPE)

    async def models(self, _: Request) -> Response:
        found = [_listed(name) for name in await self._pool.names()]
        page = {"first_id": found[0]["id"] if found else None, "last_id": found[-1]["id"] if found else None}
        system_one = [{"name": one["id"], "description": "", "release_date": "1970-01-01"} for one in found]
        return JSONResponse({"object": "list", "data": found, "models": system_one, "has_more": False, **page})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in await self._pool.names():
            return as_request_error(ModelNotFoundError(f"model {name!r} not found")).response(request.url.path)
        return JSONResponse(_listed(name))


def _listed(name: str) -> dict[str, Any]:
    """Describe a model with the fields of OpenAI's and Anthropic's APIs and of this package's `http` backend."""
    openai = {"object": "model", "created": 0, "owned_by": "inference-bridge"}
    anthropic = {"type": "model", "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
    return {"id": name, **openai, **anthropic, "bridge_protocol": bridge_format.PROTOCOL}


async def _embeddings(request: Request, body: object, pool: ModelPool) -> Response:
    asked = embeddings_request(body)
    async with pool.use(asked.model, load_wait(request)) as model:
        if not isinstance(model, EmbeddingModel) or "embeddings" not in model.capabilities:
            raise UnsupportedError("embeddings", asked.model, "it is not an embedding model")
        vectors = await model.aembed(asked.texts)
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if asked.base64 else list(vector)}
        for index, vector in enumerate(vectors)
    ]
    return JSONAnswer({"object": "list", "model": asked.model, "data": data})


def _packed(vector: Sequence[float]) -> str:
    """Return the vector as little-endian float32 in base64, as OpenAI sends it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    problem = RequestError(status, f"{request.method} {request.url.path} is not a route of this server")
    return problem.response(request.url.path)
