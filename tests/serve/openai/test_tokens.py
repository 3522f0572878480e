# SPDX-License-Identifier: Apache-2.0
"""/tokenize and /detokenize, in both shapes, on the real small model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

import inference_bridge as ib
from inference_bridge.interfaces import TokenModel

from ...parts.models.tiny import Words
from ..conftest import Serving, running

TEXT = "Grüße <|im_end|> 😀"


@pytest.fixture(scope="module")
def address(model: ib.TextModel) -> Iterator[str]:
    with running({"small": model}) as at:
        yield at


def posted(address: str, path: str, **body: Any) -> Any:
    return httpx2.post(f"{address}/{path}", json=body).json()


def test_a_model_gives_access_to_its_tokenizer(model: ib.TextModel) -> None:
    assert isinstance(model, TokenModel)
    assert not isinstance(Words(), TokenModel)
    ids = model.tokenize(TEXT)
    assert len(ids) == model.count_tokens(TEXT)
    assert len(model.tokenize(TEXT, special=True)) < len(ids)
    assert model.detokenize(ids) == TEXT
    for wrong in (-1, model.info.vocab_size):
        with pytest.raises(ValueError, match=str(wrong)):
            model.detokenize([wrong])
    with pytest.raises(TypeError):
        model.detokenize([True])
    with pytest.raises(TypeError):
        model.tokenize(b"x")  # type: ignore[arg-type]


def test_a_conversation_is_counted_as_it_is_evaluated(model: ib.TextModel) -> None:
    assert isinstance(model, TokenModel)
    conversation = [{"role": "user", "content": TEXT}]
    tools = [ib.Tool("f", "Does it")]
    evaluated = model.chat(conversation, tools=tools, max_tokens=1).result().metrics.prompt_tokens
    assert model.count_chat_tokens(conversation, tools=tools) == evaluated


def test_llama_servers_shape(address: str, model: ib.TextModel) -> None:
    assert isinstance(model, TokenModel)
    ids = model.tokenize(TEXT)
    assert posted(address, "tokenize", content=TEXT)["tokens"] == ids
    special = posted(address, "tokenize", content=TEXT, add_special=True, parse_special=True)
    assert special["tokens"] == model.tokenize(TEXT, special=True)
    pieces = posted(address, "tokenize", content="Hello you", with_pieces=True)["tokens"]
    assert "".join(piece["piece"] for piece in pieces) == "Hello you"
    assert posted(address, "detokenize", tokens=ids)["content"] == TEXT


def test_vllms_shape(address: str, model: ib.TextModel) -> None:
    assert isinstance(model, TokenModel)
    answer = posted(address, "tokenize", model="small", prompt="Hello you", return_token_strs=True)
    assert answer["tokens"] == model.tokenize("Hello you", special=True)
    assert (answer["count"], answer["max_model_len"]) == (len(answer["tokens"]), model.info.context_length)
    assert "".join(answer["token_strs"]) == "Hello you"
    assert posted(address, "detokenize", model="small", tokens=answer["tokens"])["prompt"] == "Hello you"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("tokenize", {}, "prompt"),
        ("tokenize", {"content": "x", "add_special": True, "parse_special": False}, "parse_special"),
        ("detokenize", {"tokens": ["x"]}, "tokens"),
        ("detokenize", {"tokens": [10**9]}, "tokens"),
    ],
)
def test_errors_name_the_wrong_field(address: str, path: str, body: dict[str, Any], param: str) -> None:
    answer = httpx2.post(f"{address}/{path}", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_model_without_a_tokenizer_is_refused(serving: Serving) -> None:
    address = serving({"a": Words(), "b": Words()})
    assert posted(address, "tokenize", content="x")["error"]["param"] == "model"
    assert posted(address, "tokenize", model="a", content="x")["error"]["code"] == "unsupported"
