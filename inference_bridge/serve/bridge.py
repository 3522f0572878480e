# SPDX-License-Identifier: Apache-2.0
"""The routes for this package's own `http` backend: every operation of a TextModel, with every option.

`backends.http.bridge_format` defines how values are sent. If the model raises an error, the answer contains it, so
that the client can raise the same error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from ..backends.http import bridge_format
from ..errors import ModelClosedError, UnsupportedError
from ..interfaces import EmbeddingModel, TokenModel
from ..model import TextModel
from ..options import GenerateConfig
from ..request import Request as Operation
from ..streams import AsyncTokenStream
from ..types import Message, Token
from .errors import RequestError, as_request_error
from .events import DONE, EventStream, JSONAnswer, event, on_disconnect
from .fields import Fields
from .guard import load_wait
from .pool import ModelPool

KEEP_ALIVE = "inference_bridge.keep_alive"
"""The key in an ASGI scope for the seconds that a model stays loaded after the request. The daemon sets it."""

Handler = Callable[[Request, Fields, ModelPool], Awaitable[Response]]


async def answer(request: Request, body: object, pool: ModelPool) -> Response:
    """Answer a POST request for /bridge/OPERATION."""
    handler = _OPERATIONS.get(request.path_params["operation"])
    if handler is None:
        raise RequestError(404, f"{request.url.path} is not a route of this server")
    try:
        return await handler(request, Fields(body), pool)
    except Exception as error:
        problem = as_request_error(error)
        return JSONAnswer(_shown(error, problem), problem.status, problem.headers)


def _shown(error: Exception, problem: RequestError) -> dict[str, Any]:
    """Return OpenAI's error object. It also contains the contract's error, if the error is one."""
    shown = problem.to_dict()
    own = None if isinstance(error, RequestError | ModelClosedError) else bridge_format.error_to_json(error)
    if own is not None:
        shown["error"][bridge_format.ERROR] = own
    return shown


# ---------------------------------------------------------------- generating


async def _generate(request: Request, fields: Fields, pool: ModelPool) -> Response:
    name, prompt, config = fields.require("model", str), fields.require("prompt", str), _config(fields)
    fields.end()
    return await _streamed(request, pool, name, lambda model: model.agenerate(prompt, config))


async def _infill(request: Request, fields: Fields, pool: ModelPool) -> Response:
    name, config = fields.require("model", str), _config(fields)
    prefix, suffix = fields.require("prefix", str), fields.require("suffix", str)
    fields.end()
    return await _streamed(request, pool, name, lambda model: model.ainfill(prefix, suffix, config))


async def _chat(request: Request, fields: Fields, pool: ModelPool) -> Response:
    name, messages, config = fields.require("model", str), _messages(fields), _config(fields)
    fields.end()
    return await _streamed(request, pool, name, lambda model: model.achat(messages, config))


async def _streamed(
    request: Request, pool: ModelPool, name: str, start: Callable[[TextModel], AsyncTokenStream]
) -> Response:
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(_using(request, pool, name))
        stream = await stack.enter_async_context(start(model))
        async with on_disconnect(request, stream.close):
            first = await anext(stream, None)
        opened = stack.pop_all()
    return EventStream(request, _events(opened, first, stream), stream.close)


async def _events(opened: AsyncExitStack, first: Token | None, stream: AsyncTokenStream) -> AsyncGenerator[str, None]:
    async with opened:
        try:
            token = first
            while token is not None:
                yield event(bridge_format.token_to_json(token))
                token = await anext(stream, None)
            end = {"content": "", "finish": stream.finish_reason, "metrics": asdict(stream.metrics)}
            yield event(end | ({"shortened": True} if stream.shortened else {}))
            yield DONE
        except Exception as error:  # the status has been sent: the error is an event
            yield event(_shown(error, as_request_error(error)))


async def _verify(request: Request, fields: Fields, pool: ModelPool) -> Response:
    """Check the options of a call, and its messages if it has any, for the errors that a call raises at once."""
    name, config, kind = fields.require("model", str), _config(fields), fields.require("kind", str)
    messages = _messages(fields) if kind == "chat" else None
    fields.end()
    async with _using(request, pool, name) as model:
        await asyncio.to_thread(_verified, model, config, messages)
    return JSONAnswer({})


def _verified(model: TextModel, config: GenerateConfig, messages: list[Message] | None) -> None:
    if messages:
        made = model._conversation(messages, config, {})
    elif messages is None:
        made = Operation("generate", model._raw_config(config, {}))
    else:
        made = Operation("generate", model._config(config, {}))  # a batch checks its options before its first prompt
    model._verified(made)


# ---------------------------------------------------------------- other operations


async def _model(request: Request, fields: Fields, pool: ModelPool) -> Response:
    """Describe the model, and load it if necessary."""
    name = fields.require("model", str)
    fields.end()
    async with _using(request, pool, name) as model:
        facts = {
            "version": __version__,
            "model": name,
            "model_type": model.model_type,
            "info": asdict(model.info),
            "capabilities": sorted(model.capabilities),
            "options": sorted(model.options),
            "parallel": model.parallel,
            "wrapped": model.wrapped,
            "shows_tokens": isinstance(model, TokenModel),
            "verifies": type(model)._verify is not TextModel._verify,
            "defaults": bridge_format.config_to_json(model.defaults),
            "recommended": bridge_format.config_to_json(model.recommended),
        }
    return JSONAnswer(facts)


async def _classify(request: Request, fields: Fields, pool: ModelPool) -> Response:
    name, prompts, config = fields.require("model", str), fields.require("prompts", list), _config(fields)
    labels = fields.take("labels", list)
    fields.end()
    async with _using(request, pool, name) as model:
        results = await _cancelled_on_disconnect(request, model.aclassify(prompts, config, labels=labels))
    return _data([bridge_format.classified_to_json(result) for result in results])


async def _decide(request: Request, fields: Fields, pool: ModelPool) -> Response:
    name, config = fields.require("model", str), _config(fields)
    state, questions = fields.take_any("state"), fields.require("questions", dict)
    fields.end()
    async with _using(request, pool, name) as model:
        decision = await _cancelled_on_disconnect(request, model.adecide(state, questions, config))
    return _data(bridge_format.decision_to_json(decision))


async def _embed(request: Request, fields: Fields, pool: ModelPool) -> Response:
    name, texts = fields.require("model", str), fields.require("texts", list)
    how = {"truncate": True} if fields.take("truncate", bool, False) else {}
    fields.end()
    async with _using(request, pool, name) as model:
        if not isinstance(model, EmbeddingModel) or "embeddings" not in model.capabilities:
            raise UnsupportedError("embed", name, "it is not an embedding model")
        vectors = await _cancelled_on_disconnect(request, model.aembed(texts, **how))
        tokens = model.metrics.prompt_tokens
    return _data([list(vector) for vector in vectors], usage={"prompt_tokens": tokens})


async def _count(request: Request, fields: Fields, pool: ModelPool) -> Response:
    """Count the tokens of a text, or of a conversation as the model reads it."""
    name, text = fields.require("model", str), fields.take("text", str)
    messages, config = ([], GenerateConfig()) if text is not None else (_messages(fields), _config(fields))
    fields.end()
    async with _using(request, pool, name) as model:
        if text is not None:
            count = await model.acount_tokens(text)
        else:
            count = await asyncio.to_thread(partial(_tokens_of(model).count_chat_tokens, messages, config))
    return _data(count)


async def _tokenize(request: Request, fields: Fields, pool: ModelPool) -> Response:
    name, text = fields.require("model", str), fields.require("text", str)
    special = fields.take("special", bool, False)
    fields.end()
    async with _using(request, pool, name) as model:
        ids = await asyncio.to_thread(partial(_tokens_of(model).tokenize, text, special=special))
    return _data(ids)


async def _detokenize(request: Request, fields: Fields, pool: ModelPool) -> Response:
    name, ids = fields.require("model", str), fields.require("tokens", list)
    fields.end()
    async with _using(request, pool, name) as model:
        text = await asyncio.to_thread(_tokens_of(model).detokenize, ids)
    return _data(text)


_OPERATIONS: Mapping[str, Handler] = {
    "model": _model,
    "verify": _verify,
    "generate": _generate,
    "infill": _infill,
    "chat": _chat,
    "classify": _classify,
    "decide": _decide,
    "embed": _embed,
    "count": _count,
    "tokenize": _tokenize,
    "detokenize": _detokenize,
}


# ---------------------------------------------------------------- reading and waiting


def _using(request: Request, pool: ModelPool, name: str) -> AbstractAsyncContextManager[TextModel]:
    return pool.use(name, load_wait(request), request.scope.get(KEEP_ALIVE))


def _config(fields: Fields) -> GenerateConfig:
    return bridge_format.config_from_json(fields.take("config", dict, {}))


def _messages(fields: Fields) -> list[Message]:
    messages = [Message.from_dict(one) for one in fields.require("messages", list)]
    if any(attachment.url is not None for message in messages for attachment in message.attachments):
        raise fields.wrong("messages", "must hold the data of attachments: this server fetches no URLs")
    return messages


def _tokens_of(model: TextModel) -> TokenModel:
    if not isinstance(model, TokenModel):
        raise UnsupportedError("tokenizing", model.backend, "the model does not show its tokens")
    return model


def _data(value: Any, **more: Any) -> Response:
    return JSONAnswer({"data": value, **more})


async def _cancelled_on_disconnect(request: Request, work: Awaitable[Any]) -> Any:
    """Return the result of `work`. Cancel it if the client disconnects."""
    task = asyncio.ensure_future(work)
    try:
        async with on_disconnect(request, task.cancel):
            return await task
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise
        raise RequestError(499, "the client has disconnected") from None
    finally:
        task.cancel()
