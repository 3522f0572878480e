# SPDX-License-Identifier: Apache-2.0
"""Reuse of a context's memory gives the same results as evaluating the tokens again.

On a sliding window that really drops what it has passed, on a recurrent state, and on the
real model: each is asked once fresh, and once after something else that began alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from inference_bridge import LoadConfig, TextModel
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend

from ...parts.models.tiny_gguf import write_recurrent, write_sliding_window

# A window of 32 in chunks of 64: after about 256 tokens the first ones are gone.
CONFIG = LoadConfig(parallel_slots=2, threads=1, batch_size=64, deterministic=True, extra={"swa_full": False})
TOLERANCE = 1e-3
LONG = "The quick brown fox jumps over the lazy dog. " * 14
ASKED = {
    "the same": LONG,
    "longer": LONG + "And then it runs away.",
    "cut within the window": LONG[:-8] + "cat.",
    "cut far before the window": LONG[:100] + "But nobody knows why.",
    "shorter": LONG[:200],
    "nothing alike": "Something else. " * 20,
}


@pytest.fixture(scope="module", params=[write_sliding_window, write_recurrent], ids=["window", "recurrent"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    write: Callable[[Path], Path] = request.param
    return write(tmp_path_factory.mktemp("models") / "tiny.gguf")


def load(path: Path) -> TextModel:
    return LlamaCppBackend().load_model(str(path), CONFIG)


def logits(model: TextModel, prompt: str) -> np.ndarray:
    (result,) = model.classify([prompt], return_logits=True)
    return np.asarray(result.logits)


@pytest.mark.parametrize("name", ASKED)
def test_after_a_long_prompt(name: str, tiny: Path) -> None:
    with load(tiny) as model:
        fresh = logits(model, ASKED[name])
    with load(tiny) as model:
        logits(model, LONG)
        assert np.abs(logits(model, ASKED[name]) - fresh).max() < TOLERANCE
    assert np.ptp(fresh) > 1  # a model that says the same of everything would pass too


@pytest.mark.parametrize("name", ASKED)
def test_while_another_goes_on(name: str, tiny: Path) -> None:
    """The memory of another slot is copied while that slot is in use."""
    with load(tiny) as model:
        fresh = logits(model, ASKED[name])
    with load(tiny) as model:
        other = model.generate(LONG, max_tokens=-1)
        next(other)
        assert np.abs(logits(model, ASKED[name]) - fresh).max() < TOLERANCE
        other.close()


def cached(model: TextModel, prompt: str) -> int:
    stream = model.generate(prompt, max_tokens=1)
    stream.text()
    return stream.metrics.cached_tokens


def test_reuse_with_a_recurrent_state(tmp_path: Path) -> None:
    with load(write_recurrent(tmp_path / "recurrent.gguf")) as model:
        assert cached(model, LONG) == 0
        assert (
            cached(model, LONG + "And then") == model.count_tokens(LONG) + 1
        )  # BOS; no token was removed from the memory
        assert cached(model, LONG) == 0  # the state is further on by now


def test_reuse_with_a_sliding_window(tmp_path: Path) -> None:
    with load(write_sliding_window(tmp_path / "window.gguf")) as model:
        assert cached(model, LONG) == 0
        assert cached(model, LONG + "And then") == model.count_tokens(LONG) + 1
        assert cached(model, LONG[:100] + "But") == 0


# ---------------------------------------------------------------- the real model


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Iterator[TextModel]:
    config = LoadConfig(context_length=1024, parallel_slots=4, deterministic=True)
    with LlamaCppBackend().load_model(str(demo_model_path), config) as loaded:
        yield loaded


SYSTEM = "You are a careful assistant. " * 12


def test_a_shared_beginning_is_copied_between_slots(model: TextModel) -> None:
    first = model.generate(SYSTEM + "The first question is", max_tokens=-1)
    next(first)
    prompts = [SYSTEM + f"Question number {n} is" for n in range(2, 5)]
    together = [model.generate(prompt, max_tokens=8, logprobs=1) for prompt in prompts]
    tokens = [list(stream) for stream in together]
    first.close()
    shared = model.count_tokens(SYSTEM)
    assert all(stream.metrics.cached_tokens >= shared - 1 for stream in together)
    # Copied memory of evaluated prompts is exact: no tolerance.
    config = LoadConfig(context_length=1024, parallel_slots=1, deterministic=True)
    with LlamaCppBackend().load_model(model._engine._model.path, config) as fresh:  # type: ignore[attr-defined]
        for prompt, got in zip(prompts, tokens, strict=True):
            assert got == list(fresh.generate(prompt, max_tokens=8, logprobs=1))


def test_the_kept_memory_is_limited_after_a_hundred_prompts(model: TextModel) -> None:
    model.batch_generate([f"{n} is a number, and" for n in range(40)], max_tokens=2)
    slots = model._engine._slots  # type: ignore[attr-defined]
    assert len(slots) == 4
    assert all(len(slot.tokens) <= 1024 for slot in slots)
