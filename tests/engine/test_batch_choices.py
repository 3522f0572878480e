# SPDX-License-Identifier: Apache-2.0
"""Several answers to each prompt: option `n`, on the real small model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference_bridge import BatchResult, LoadConfig, TextModel, UnsupportedError
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend

PROMPTS = ["The cat", "A dog"]
CHATS = [[{"role": "user", "content": f"Write about {what}."}] for what in ("cats", "dogs")]


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Iterator[TextModel]:
    config = LoadConfig(context_length=256, parallel_slots=2, deterministic=True)
    with LlamaCppBackend().load_model(str(demo_model_path), config) as loaded:
        yield loaded


def texts(results: list[BatchResult]) -> list[str]:
    return [result.text for result in results]


async def test_each_prompt_has_n_answers_that_differ_and_repeat(model: TextModel) -> None:
    options: dict[str, Any] = {"n": 3, "max_tokens": 8, "temperature": 1.0, "seed": 5}
    calls: list[tuple[Any, Any, Any, Any]] = [
        (model.generate, model.batch_generate, model.abatch_generate, PROMPTS),
        (model.chat, model.chat_batch, model.achat_batch, CHATS),
    ]
    for single, batch, abatch, items in calls:
        found = texts(batch(items, **options))
        assert len(found) == 6
        assert len(set(found[:3])) == 3
        assert found[::3] == [single(item, **options | {"n": 1}).text() for item in items]
        assert texts(batch(items, **options)) == found
        assert texts(await abatch(items, **options)) == found


async def test_streams_of_batches_number_all_answers(model: TextModel) -> None:
    indexes = {index for index, _ in model.stream_batch(iter(PROMPTS), n=2, max_tokens=2)}
    assert indexes == {0, 1, 2, 3}

    async def prompts() -> AsyncIterator[str]:
        for prompt in PROMPTS:
            yield prompt

    assert {index async for index, _ in model.astream_batch(prompts(), n=2, max_tokens=2)} == {0, 1, 2, 3}


def test_one_stream_is_one_answer(model: TextModel) -> None:
    with pytest.raises(UnsupportedError, match="batch_generate"):
        model.generate("x", n=2)
    with pytest.raises(UnsupportedError, match="chat_batch"):
        model.chat(CHATS[0], n=2)
    with pytest.raises(UnsupportedError, match="n=2"):
        model.classify(["x"], n=2)
