# SPDX-License-Identifier: Apache-2.0
"""Concurrent sequences, and the chunks of a prompt, change the results of a sequence only by rounding.

With deterministic=True the results do not depend on them at all, on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference_bridge import LoadConfig, TextModel
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend

TOLERANCE = 1.5
"""Of a logit, of which this model's span about 40; docs/engine.md states it. Over 24 prompts the most was 1.07."""

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in the old town of Lisbon, there lived",
    "def fibonacci(n):",
    "The quick brown fox jumps over the lazy dog. " * 30,
]
NEIGHBOURS = ["1, 2, 3,", "Dear Sir or Madam,", "SELECT * FROM", "从前有一个"]

modes = pytest.mark.parametrize("deterministic", [False, True], ids=["fast", "deterministic"])


def load(path: Path, deterministic: bool, **options: Any) -> TextModel:
    config = LoadConfig(context_length=512, deterministic=deterministic, **options)
    return LlamaCppBackend().load_model(str(path), config)


def logits(model: TextModel, prompt: str) -> Any:
    """Of the token that comes next, float32 [vocab_size]."""
    (result,) = model.classify([prompt], return_logits=True)
    return np.asarray(result.logits)


@pytest.fixture(scope="module", params=[False, True], ids=["fast", "deterministic"])
def alone(request: pytest.FixtureRequest, demo_model_path: Path) -> tuple[bool, Mapping[str, Any]]:
    """The logits after each prompt, each from a newly loaded model."""
    found = {}
    for prompt in PROMPTS:
        with load(demo_model_path, request.param, parallel_slots=1) as model:
            found[prompt] = logits(model, prompt)
    return request.param, found


def check(deterministic: bool, got: Any, expected: Any) -> None:
    assert np.ptp(expected) > 20  # a model that says the same of everything would pass too
    if deterministic:
        assert np.array_equal(got, expected)
    else:
        assert np.abs(got - expected).max() < TOLERANCE


def test_concurrent_sequences_change_logits_only_by_rounding(
    alone: tuple[bool, Mapping[str, Any]], demo_model_path: Path
) -> None:
    deterministic, expected = alone
    with load(demo_model_path, deterministic, parallel_slots=8) as model:
        streams = [model.generate(prompt, max_tokens=-1) for prompt in NEIGHBOURS]
        for stream in streams:
            next(stream)
        for prompt in PROMPTS:
            check(deterministic, logits(model, prompt), expected[prompt])
        assert all(stream.finish_reason is None for stream in streams), "the neighbours have left"
        for stream in streams:
            stream.close()


@pytest.mark.parametrize("size", [64, 33])
def test_chunks_change_logits_only_by_rounding(
    size: int, alone: tuple[bool, Mapping[str, Any]], demo_model_path: Path
) -> None:
    deterministic, expected = alone
    with load(demo_model_path, deterministic, parallel_slots=1, batch_size=size) as model:
        check(deterministic, logits(model, PROMPTS[-1]), expected[PROMPTS[-1]])


@modes
def test_a_seed_repeats_with_the_same_concurrent_sequences(deterministic: bool, demo_model_path: Path) -> None:
    def sampled() -> list[list[int | None]]:
        with load(demo_model_path, deterministic) as model:
            results = model.batch_generate(PROMPTS[:3], temperature=1.0, seed=7, max_tokens=16)
            return [[token.id for token in result.tokens] for result in results]

    assert sampled() == sampled()


def test_the_default_leaves_flash_attention_and_repacking_to_llama_cpp(demo_model_path: Path) -> None:
    from inference_bridge.backends.llama_cpp.library import can_offload, lib

    for deterministic in (False, True):
        with load(demo_model_path, deterministic) as model:
            chosen = model._engine._context._params.flash_attn_type  # type: ignore[attr-defined]
        exact = deterministic and not can_offload()
        assert chosen == (lib.LLAMA_FLASH_ATTN_TYPE_DISABLED if exact else lib.LLAMA_FLASH_ATTN_TYPE_AUTO)


@pytest.mark.parametrize(
    "extra", [{"flash_attn_type": 1}, {"use_extra_bufts": True}, {"n_ubatch": 64}, {"n_batch": 64}], ids=str
)
def test_extra_cannot_undo_it(extra: dict[str, Any], demo_model_path: Path) -> None:
    (name,) = extra
    with pytest.raises(TypeError, match=rf"{name}.*deterministic"):
        load(demo_model_path, True, extra=extra)
    load(demo_model_path, False, extra=extra).close()
