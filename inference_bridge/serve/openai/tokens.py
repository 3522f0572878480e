# SPDX-License-Identifier: Apache-2.0
"""The routes /tokenize and /detokenize, in the formats of llama-server and of vLLM.

Sources: https://github.com/ggml-org/llama.cpp/tree/master/tools/server and https://docs.vllm.ai
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...errors import UnsupportedError
from ...interfaces import TokenModel
from ...model import TextModel
from ..fields import Fields
from ..guard import load_wait
from ..pool import ModelPool


async def tokenize(request: Request, body: object, pool: ModelPool) -> Response:
    """Answer /tokenize. The text is `content` for llama-server, which adds no special tokens, and `prompt` for vLLM."""
    fields = Fields(body)
    name = await _model(fields, pool)
    text = fields.take("content", str)
    of_llama = text is not None
    if text is None:
        text = fields.require("prompt", str)
    special = fields.take("add_special" if of_llama else "add_special_tokens", bool, not of_llama)
    if of_llama:
        fields.refuse("parse_special", special, why="must equal add_special: this server has one choice for both")
    with_pieces = fields.take("with_pieces" if of_llama else "return_token_strs", bool, False)
    fields.end()
    async with pool.use(name, load_wait(request)) as model:
        tokens = _tokens_of(model, name)
        ids = await asyncio.to_thread(partial(tokens.tokenize, text, special=special))
        shown: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": model.info.context_length}
        if with_pieces:
            pieces = await asyncio.to_thread(lambda: [tokens.detokenize([id]) for id in ids])
            if of_llama:
                shown["tokens"] = [{"id": id, "piece": piece} for id, piece in zip(ids, pieces, strict=True)]
            else:
                shown["token_strs"] = pieces
    return JSONResponse(shown)


async def detokenize(request: Request, body: object, pool: ModelPool) -> Response:
    """Answer /detokenize. The answer has the text as `content`, as from llama-server, and as `prompt`, as from vLLM."""
    fields = Fields(body)
    name = await _model(fields, pool)
    ids = fields.require("tokens", list)
    fields.end()
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        raise fields.wrong("tokens", "must be an array of integers")
    async with pool.use(name, load_wait(request)) as model:
        try:
            text = await asyncio.to_thread(_tokens_of(model, name).detokenize, ids)
        except ValueError as error:
            raise fields.wrong("tokens", f"must be ids of the model's tokens: {error}") from None
    return JSONResponse({"content": text, "prompt": text})


async def _model(fields: Fields, pool: ModelPool) -> str:
    """Return the model's name, which may be left out if the server has only one model."""
    name = fields.take("model", str)
    if name is None:
        names = await pool.names()
        if len(names) != 1:
            raise fields.wrong("model", "is required: this server has several models")
        name = names[0]
    return name


def _tokens_of(model: TextModel, name: str) -> TokenModel:
    if not isinstance(model, TokenModel):
        raise UnsupportedError("tokenizing", name, "it does not show its tokens")
    return model
