# SPDX-License-Identifier: Apache-2.0
"""Many concurrent callers: they get the same answers as single callers, and leak no resources."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from inference_bridge import GenerationError, GenerationTimeoutError, LoadConfig, Message, TextModel
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend

from ...parts.leaks import threads_since
from ...parts.models.tiny_gguf import write_sliding_window

SLOTS = 8


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Iterator[TextModel]:
    config = LoadConfig(context_length=512, parallel_slots=SLOTS, deterministic=True)
    with LlamaCppBackend().load_model(str(demo_model_path), config) as loaded:
        yield loaded


MIXED: list[tuple[str, dict[str, Any]]] = [
    ("The capital of France is", {}),
    ("The capital of France is", {"stop": ["."]}),
    ("Once upon a time", {"temperature": 1.0, "seed": 1}),
    ("Once upon a time", {"temperature": 1.0, "seed": 2, "top_k": 20}),
    ("def fibonacci(n):", {"max_tokens": 40}),
    ("从前有一个", {}),
    ("🎉🎊", {"max_tokens": 30}),
    ("1, 2, 3,", {"repeat_penalty": 1.3}),
    ("A", {"max_tokens": 1}),
    ("The quick brown fox " * 20, {}),
    ("The quick brown fox " * 20 + "jumps", {"temperature": 0.7, "seed": 3, "top_p": 0.9}),
    ("SELECT * FROM", {"presence_penalty": 0.5}),
    ("Dear Sir or Madam,", {"min_p": 0.1, "temperature": 0.9, "seed": 4}),
    ("x" * 300, {}),
    ("Q: What is water? A:", {"stop": "\n"}),
    ("To be or not to be,", {"logprobs": 3}),
]


def test_sixteen_concurrent_callers_get_the_answers_of_single_calls(demo_model_path: Path) -> None:
    """Bit by bit: on a CPU, the results of a sequence do not depend on concurrent sequences."""
    config = LoadConfig(context_length=512, parallel_slots=SLOTS, deterministic=True)
    options = [{"max_tokens": 20, "logprobs": 1} | more for _, more in MIXED]
    alone = []
    for (prompt, _), given in zip(MIXED, options, strict=True):
        with LlamaCppBackend().load_model(
            str(demo_model_path), LoadConfig(context_length=512, deterministic=True)
        ) as fresh:
            alone.append(list(fresh.generate(prompt, **given)))
    with LlamaCppBackend().load_model(str(demo_model_path), config) as model:

        async def together() -> list[Any]:
            streams = [model.agenerate(prompt, **given) for (prompt, _), given in zip(MIXED, options, strict=True)]
            return [result.tokens for result in await asyncio.gather(*[stream.result() for stream in streams])]

        assert [list(tokens) for tokens in asyncio.run(together())] == alone


def test_reuse_of_an_answer_changes_logits_within_tolerance(model: TextModel) -> None:
    """A second turn: memory of decoded tokens was computed one by one, which rounds differently."""
    tolerance = 1.0  # of a logit, of which this model's span about 40
    turns = [Message("user", "Name three colours.")]
    answer = model.chat(turns, max_tokens=24).text()
    turns += [Message("assistant", answer), Message("user", "Name a fourth one.")]
    reused = model.chat(turns, max_tokens=1, logprobs=5)
    (again,) = reused
    assert reused.metrics.cached_tokens > 30
    path = model._engine._model.path  # type: ignore[attr-defined]
    with LlamaCppBackend().load_model(path, LoadConfig(context_length=512, deterministic=True)) as fresh:
        (first,) = fresh.chat(turns, max_tokens=1, logprobs=5)
    likely = {top.id: top.logprob for top in first.top_logprobs}
    close = {top.id: top.logprob for top in again.top_logprobs}
    both = likely.keys() & close.keys()
    assert len(both) >= 3
    assert max(abs(likely[id] - close[id]) for id in both) < tolerance


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextModel]:
    path = write_sliding_window(tmp_path_factory.mktemp("models") / "tiny.gguf")
    config = LoadConfig(parallel_slots=SLOTS, threads=1, batch_size=64)
    with LlamaCppBackend().load_model(str(path), config) as loaded:
        yield loaded


def settle(model: TextModel, seconds: float = 20.0) -> tuple[int, int]:
    deadline = time.monotonic() + seconds
    while any(model._scheduler.load) and time.monotonic() < deadline:  # type: ignore[attr-defined]
        time.sleep(0.01)
    load: tuple[int, int] = model._scheduler.load  # type: ignore[attr-defined]
    return load


def disturb(model: TextModel, seed: int, until: float) -> int:
    """Calls operations and abandons them in various ways; returns the number of operations begun."""
    dice = random.Random(seed)
    count = 0
    while time.monotonic() < until:
        count += 1
        prompt = "word " * dice.randrange(1, 60)
        what = dice.randrange(6)
        stream = model.generate(prompt, max_tokens=dice.randrange(1, 40), temperature=dice.random(), seed=seed)
        if what == 0:
            stream.text()
        elif what == 1:  # closed midway
            for _ in range(dice.randrange(5)):
                next(stream, None)
            stream.close()
        elif what == 2:  # dropped midway
            next(stream, None)
        elif what == 3:  # closed by somebody else
            timer = threading.Timer(dice.random() / 50, stream.close)
            timer.start()
            list(stream)
            timer.join()
        elif what == 4:
            try:
                model.generate(prompt, max_tokens=-1, timeout=0.01).text()
            except GenerationTimeoutError:
                pass
        else:
            try:
                model.generate("word " * 2000).text()
            except GenerationError:
                pass
    return count


async def disturb_async(model: TextModel, seed: int, until: float) -> int:
    dice = random.Random(seed)
    count = 0
    while time.monotonic() < until:
        count += 1
        stream = model.agenerate("word " * dice.randrange(1, 60), max_tokens=dice.randrange(1, 40))
        task = asyncio.create_task(stream.text())
        if dice.random() < 0.5:
            await asyncio.sleep(dice.random() / 20)
            task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
    return count


@pytest.mark.slow
def test_abandoned_operations_leak_no_resources(tiny: TextModel) -> None:
    """64 threads and 200 tasks that cancel, time out, fail and drop, for some seconds."""

    def burst(seconds: float) -> int:
        until = time.monotonic() + seconds
        counts: list[int] = []
        threads = [
            threading.Thread(target=lambda seed=seed: counts.append(disturb(tiny, seed, until))) for seed in range(64)
        ]
        for thread in threads:
            thread.start()

        async def tasks() -> int:
            return sum(await asyncio.gather(*[disturb_async(tiny, seed, until) for seed in range(200)]))

        counts.append(asyncio.run(tasks()))
        for thread in threads:
            thread.join()
        return sum(counts)

    burst(2)  # whatever is made once is made now
    gc.collect()
    threads, memory = threading.enumerate(), psutil.Process().memory_info().rss
    files = psutil.Process().num_fds() if hasattr(psutil.Process, "num_fds") else 0
    operations = burst(5)
    assert operations
    assert settle(tiny) == (0, 0)
    gc.collect()
    assert threads_since(threads) == []
    assert psutil.Process().memory_info().rss - memory < 50_000_000
    assert not files or psutil.Process().num_fds() <= files
    assert not tiny._life.running
    # The contents of the slots still agree with their records.
    prompt = "word " * 20
    again = [token.id for token in tiny.generate(prompt, max_tokens=8)]
    with LlamaCppBackend().load_model(tiny._engine._model.path, LoadConfig(threads=1)) as fresh:  # type: ignore[attr-defined]
        assert again == [token.id for token in fresh.generate(prompt, max_tokens=8)]


def call_until_it_fails(model: TextModel, words: int, ended: list[str]) -> None:
    try:
        while True:
            model.generate("word " * words, max_tokens=50).text()
    except Exception as error:
        ended.append(type(error).__name__)


def test_close_under_load(tmp_path: Path) -> None:
    path = write_sliding_window(tmp_path / "tiny.gguf")
    before = threading.enumerate()
    for round_ in range(8):
        model = LlamaCppBackend().load_model(str(path), LoadConfig(parallel_slots=4, threads=1))
        ended: list[str] = []
        threads = [threading.Thread(target=call_until_it_fails, args=(model, words, ended)) for words in range(1, 9)]
        for thread in threads:
            thread.start()
        time.sleep(0.02 * round_)
        model.close()
        for thread in threads:
            thread.join(20)
        assert ended == ["ModelClosedError"] * 8
    assert threads_since(before) == []
