# SPDX-License-Identifier: Apache-2.0
"""Every async method raises a clear error on an event loop other than asyncio's."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from inference_bridge import Message, Noul, TextModel
from inference_bridge._concurrency.loops import check_asyncio
from inference_bridge.errors import UnsupportedError

from ..parts.models.scripted_engine import ScriptedEngine, ScriptedModel

OPERATIONS: dict[str, Callable[[TextModel], Coroutine[Any, Any, Any]]] = {
    "agenerate": lambda model: model.agenerate("a").text(),
    "achat": lambda model: model.achat([Message("user", "a")]).result(),
    "achat of many messages": lambda model: model.achat([Message("user", "a")] * 1000).text(),
    "abatch_generate": lambda model: model.abatch_generate(["a"]),
    "achat_batch": lambda model: model.achat_batch([[Message("user", "a")]]),
    "astream_batch": lambda model: anext(model.astream_batch(["a"])),
    "aclassify": lambda model: model.aclassify(["a"]),
    "adecide": lambda model: model.adecide("a", {"x": Noul("?")}),
    "acount_tokens": lambda model: model.acount_tokens("a"),
    "acount_tokens of a long text": lambda model: model.acount_tokens("a" * 10_000),
    "aclose": lambda model: model.aclose(),
}


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(ScriptedEngine()) as model:
        yield model


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_without_asyncio_are_refused(model: ScriptedModel, name: str) -> None:
    coroutine = OPERATIONS[name](model)
    if name == "acount_tokens":  # a short text needs no event loop at all
        with pytest.raises(StopIteration) as ended:
            coroutine.send(None)
        assert ended.value.value == 1
        return
    with pytest.raises(UnsupportedError, match="asyncio"):
        coroutine.send(None)
    assert not model.closed


async def test_the_check_accepts_asyncio() -> None:
    check_asyncio("scripted")
