# SPDX-License-Identifier: Apache-2.0
"""The MLX engine: prefixes, batches of prompts, sampling, and errors of single sequences."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import inference_bridge as ib
from inference_bridge.backends.mlx import engine
from inference_bridge.backends.mlx import model as mlx_model
from inference_bridge.engine.classify import Evaluation
from inference_bridge.engine.scheduler import Sampling
from inference_bridge.grammar.grammar import Grammar

from ...parts.models.mlx_tiny import WINDOW, write_tiny_mlx

T = TypeVar("T")

FOX = "The quick brown fox jumps over the lazy dog. "
PROMPTS = [FOX * 6, "Once upon a time", "Why is the sky blue? What is the", "A", "What is the capital"]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "integer"}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: write_tiny_mlx(folder / name, architecture=name) for name in ("llama", "sliding", "mamba")}


@pytest.fixture(scope="module")
def model(directories: dict[str, Path]) -> Iterator[ib.TextModel]:
    with ib.load_model(directories["llama"], backend="mlx") as loaded:
        yield loaded


@pytest.fixture
def fresh(directories: dict[str, Path]) -> Iterator[ib.TextModel]:
    """A new model, which evaluates four prompt tokens in a step."""
    with ib.load_model(directories["llama"], backend="mlx", batch_size=4) as loaded:
        yield loaded


def ids(stream: Any) -> list[int | None]:
    return [token.id for token in stream]


def alone(directory: Path, prompt: str, **options: Any) -> list[int | None]:
    """The answer of a new model."""
    with ib.load_model(directory, backend="mlx") as model:
        return ids(model.generate(prompt, **options))


def on_worker(function: Callable[[], T]) -> T:
    """Have it computed in the thread that all of MLX has here."""
    return mlx_model.shared_worker().call(function)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# ---------------------------------------------------------------- the prefix cache


@pytest.mark.parametrize("name", ["llama", "sliding", "mamba"])
def test_concurrent_sequences_and_reuse_do_not_change_results(directories: dict[str, Path], name: str) -> None:
    expected = [alone(directories[name], prompt, max_tokens=40) for prompt in PROMPTS]
    with ib.load_model(directories[name], backend="mlx", parallel_slots=3) as model:
        for _ in range(2):
            assert [ids(one.tokens) for one in model.batch_generate(PROMPTS, max_tokens=40)] == expected
        for prompt, tokens in zip(PROMPTS, expected, strict=True):
            assert ids(model.generate(prompt, max_tokens=40)) == tokens


@pytest.mark.parametrize("name", ["llama", "sliding", "mamba"])
def test_a_conversation_evaluates_only_new_tokens(directories: dict[str, Path], name: str) -> None:
    template = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}assistant:"
    with ib.load_model(directories[name], backend="mlx", chat_template=template) as model:
        messages = [ib.Message("user", FOX)]
        before = 0
        for _ in range(3):
            stream = model.chat(messages, max_tokens=6, temperature=0)
            text = stream.text()
            rendered = model._template.render(messages).text  # type: ignore[attr-defined]
            with ib.load_model(directories[name], backend="mlx") as untouched:
                assert text == untouched.generate(rendered, max_tokens=6).text()
            assert stream.metrics.cached_tokens >= before
            # An answer may be tokenized otherwise when it is read again, but never the prompt before it.
            before = stream.metrics.prompt_tokens - 1
            messages += [ib.Message("assistant", "Paris."), ib.Message("user", FOX)]


def test_a_window_that_has_moved_on_is_not_cut(directories: dict[str, Path]) -> None:
    """The prompts differ at a place that the second layer's window has already left."""
    first, second = FOX * 6, FOX * 2 + "Once upon a time" + FOX * 3
    with ib.load_model(directories["sliding"], backend="mlx") as model:
        assert model.count_tokens(FOX * 2) + WINDOW < model.count_tokens(first)
        model.generate(first, max_tokens=4).text()
        stream = model.generate(second, max_tokens=20)
        assert ids(stream) == alone(directories["sliding"], second, max_tokens=20)
        assert stream.metrics.cached_tokens == 0


def test_a_running_sequence_shares_its_prefix(fresh: ib.TextModel, directories: dict[str, Path]) -> None:
    speaking = fresh.generate(FOX * 6, max_tokens=300)
    next(speaking)
    other = fresh.generate(FOX * 6 + "Once upon", max_tokens=8)
    said = ids(other)
    assert other.metrics.cached_tokens >= other.metrics.prompt_tokens - 4
    speaking.close()
    assert said == alone(directories["llama"], FOX * 6 + "Once upon", max_tokens=8)


def test_a_running_sequence_beyond_its_window_shares_no_prefix(directories: dict[str, Path]) -> None:
    """Tokens that have left the window of its second layer cannot be shared."""
    prompt = FOX * 3
    with ib.load_model(directories["sliding"], backend="mlx", extra={"prefix_cache_bytes": 0}) as model:
        assert model.count_tokens(prompt) > WINDOW
        speaking = model.generate(prompt, max_tokens=300)
        next(speaking)
        other = model.generate(prompt + "Once upon", max_tokens=8)
        said = ids(other)
        assert other.metrics.cached_tokens == 0
        speaking.close()
    assert said == alone(directories["sliding"], prompt + "Once upon", max_tokens=8)


def test_a_prefix_that_many_share_is_evaluated_once(fresh: ib.TextModel) -> None:
    prompts = [FOX * 5 + f"{word} is" for word in ("sky", "king", "castle", "sea", "France", "fox", "dog", "time")]
    before = fresh.stats()  # type: ignore[attr-defined]
    results = fresh.batch_generate(prompts, max_tokens=2)
    after = fresh.stats()  # type: ignore[attr-defined]
    shared = fresh.count_tokens(FOX * 5)
    prompted = after.prompt_tokens - before.prompt_tokens
    evaluated = prompted - (after.cached_tokens - before.cached_tokens)
    assert prompted > 8 * shared
    assert evaluated < shared + 8 * 10
    assert [result.error for result in results] == [None] * 8


def test_the_memory_of_kept_prefixes_is_limited(directories: dict[str, Path]) -> None:
    size = 2 * 2 * 16 * 4 * 2 * 300  # of 300 tokens
    with ib.load_model(directories["llama"], backend="mlx", extra={"prefix_cache_bytes": size}) as model:
        for number in range(5):
            model.generate(f"{number} Once upon a time", max_tokens=90).text()
        kept = model._engine._prefixes  # type: ignore[attr-defined]
        assert 0 < kept.size <= size
        before = kept.size
        model.generate(FOX * 20, max_tokens=2).text()  # alone larger than the limit
        assert kept.size == before
    with ib.load_model(directories["llama"], backend="mlx", extra={"prefix_cache_bytes": 0}) as model:
        for _ in range(2):
            stream = model.generate(FOX, max_tokens=4)
            stream.text()
            assert stream.metrics.cached_tokens == 0


def test_a_prompt_cancelled_halfway_leaves_a_valid_state(fresh: ib.TextModel, directories: dict[str, Path]) -> None:
    stream = fresh.generate(FOX * 10, max_tokens=4)
    reader = threading.Thread(target=stream.result)
    reader.start()
    until(lambda: fresh._scheduler.load[0] == 1)  # type: ignore[attr-defined]
    stream.close()
    reader.join()
    again = fresh.generate(FOX * 10, max_tokens=4)
    assert ids(again) == alone(directories["llama"], FOX * 10, max_tokens=4)
    assert stream.finish_reason == "cancelled"


# ---------------------------------------------------------------- classify


def test_classify_gives_the_models_own_logits(model: ib.TextModel, directories: dict[str, Path]) -> None:
    results = model.classify([*PROMPTS, PROMPTS[1]], return_logits=True)
    for prompt, result in zip([*PROMPTS, PROMPTS[1]], results, strict=True):
        tokens = model._tokenizer.encode(prompt, special=True)  # type: ignore[attr-defined]
        expected = _logits(directories["llama"], tokens)
        np.testing.assert_allclose(np.asarray(result.logits), expected, atol=2e-3)
        assert result.token.id == int(expected.argmax())


def _logits(directory: Path, tokens: list[int]) -> np.ndarray:
    """Those after the tokens, as mlx-lm alone computes them."""

    def compute() -> np.ndarray:
        import mlx.core as mx
        from mlx_lm.utils import load_model

        model = load_model(directory)[0]
        return np.array(model(mx.array([tokens]))[0, -1])

    return on_worker(compute)


def test_labels_have_the_probability_of_all_their_tokens(model: ib.TextModel, directories: dict[str, Path]) -> None:
    prompt, labels = "Once upon a", [" time", " king", " castle by the sea", " sky"]
    (result,) = model.classify([prompt], labels=labels)
    sums = []
    for label in labels:
        tokens = model._tokenizer.encode(prompt + label, special=True)  # type: ignore[attr-defined]
        begin = len(model._tokenizer.encode(prompt, special=True))  # type: ignore[attr-defined]
        total = 0.0
        for place in range(begin, len(tokens)):
            logits = _logits(directories["llama"], tokens[:place]).astype(np.float64)
            total += logits[tokens[place]] - np.logaddexp.reduce(logits)
        sums.append(total)
    expected = np.exp(sums) / np.exp(sums).sum()
    assert result.scores is not None
    np.testing.assert_allclose([result.scores[label] for label in labels], expected, rtol=1e-2, atol=1e-6)
    assert result.label == labels[int(expected.argmax())]


# ---------------------------------------------------------------- sampling


def _chain(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The probabilities that llama.cpp's chain leaves: top-k, top-p, min-p, temperature."""
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    probabilities = np.exp(logits[order] - logits[order].max())
    probabilities /= probabilities.sum()
    if sampling.top_p < 1:
        count = int(np.searchsorted(probabilities.cumsum(), sampling.top_p)) + 1
        order, probabilities = order[:count], probabilities[:count]
    if sampling.min_p:
        keep = probabilities >= sampling.min_p * probabilities.max()
        order = order[keep]
    scaled = logits[order] / sampling.temperature
    left = np.zeros_like(logits)
    left[order] = np.exp(scaled - scaled.max())
    left /= left.sum()
    return left


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.5),
        Sampling(temperature=1.5, top_k=5),
        Sampling(temperature=1.0, top_p=0.7),
        Sampling(temperature=2.0, min_p=0.2),
        Sampling(temperature=1.2, top_k=8, top_p=0.8, min_p=0.1),
    ],
    ids=str,
)
def test_sampling_is_llama_cpps(sampling: Sampling) -> None:
    logits = np.random.default_rng(5).standard_normal(24).astype(np.float32) * 2 + 100
    count = 4000

    def draw() -> np.ndarray:
        import mlx.core as mx

        from inference_bridge.backends.mlx.sampling import sampled

        rows = mx.broadcast_to(mx.array(logits), (count, len(logits)))
        return np.array(sampled(rows, sampling, mx.random.key(3)))

    drawn = np.bincount(on_worker(draw), minlength=len(logits)) / count
    expected = _chain(logits.astype(np.float64), sampling)
    assert not drawn[expected == 0].any()
    np.testing.assert_allclose(drawn, expected, atol=0.04)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(repeat_penalty=1.5), Sampling(presence_penalty=2.0, frequency_penalty=0.5), Sampling(repeat_penalty=0.5)],
    ids=str,
)
def test_penalties_are_llama_cpps(sampling: Sampling) -> None:
    logits = np.random.default_rng(6).standard_normal(12).astype(np.float32) * 3
    recent = [1, 1, 5, 7, 1, 5]
    expected = logits.copy()
    for token in set(recent):
        repeat = sampling.repeat_penalty
        expected[token] *= repeat if expected[token] <= 0 else 1 / repeat
        expected[token] -= recent.count(token) * sampling.frequency_penalty + sampling.presence_penalty

    def compute() -> np.ndarray:
        import mlx.core as mx

        from inference_bridge.backends.mlx.sampling import penalised

        return np.array(penalised(mx.array(logits)[None], mx.array(recent), sampling)[0])

    np.testing.assert_allclose(on_worker(compute), expected, rtol=1e-6)


def test_penalties_look_back_on_64_tokens_of_prompt_and_answer(fresh: ib.TextModel) -> None:
    """Also where the prompt was in memory already."""
    prompt = FOX * 4
    first, second = (fresh.generate(prompt, max_tokens=80, frequency_penalty=60.0) for _ in range(2))
    said = ids(first)
    assert ids(second) == said
    assert second.metrics.cached_tokens > 0
    history = [*fresh._tokenizer.encode(prompt, special=True), *said]  # type: ignore[attr-defined]
    for place in range(len(history) - 80, len(history)):
        assert history[place] not in history[place - 64 : place]


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
def test_a_seed_repeats_with_concurrent_sequences(model: ib.TextModel, seed: int) -> None:
    options: dict[str, Any] = {"max_tokens": 24, "temperature": 1.2, "top_k": 50, "seed": seed}
    expected = ids(model.generate(PROMPTS[1], **options))
    unseeded = [model.generate(prompt, max_tokens=200, min_tokens=100, temperature=1.0) for prompt in PROMPTS[:2]]
    for stream in unseeded:
        next(stream)
    assert ids(model.generate(PROMPTS[1], **options)) == expected
    for stream in unseeded:
        stream.close()
    assert ids(model.generate(PROMPTS[1], **options | {"seed": seed ^ 5})) != expected


def test_log_probabilities_are_those_of_the_model(model: ib.TextModel) -> None:
    plain = list(model.generate(PROMPTS[1], max_tokens=6, logprobs=3))
    (first,) = model.classify([PROMPTS[1]], return_logits=True)
    logits = np.asarray(first.logits, dtype=np.float64)
    expected = logits - np.logaddexp.reduce(logits)
    assert plain[0].logprob == pytest.approx(expected.max(), abs=1e-4)
    assert [top.id for top in plain[0].top_logprobs] == list(np.argsort(-expected)[:3])
    single = next(model.generate(PROMPTS[1], max_tokens=1, logprobs=3))
    assert single.logprob == pytest.approx(plain[0].logprob, abs=1e-4)
    masked = next(model.generate(PROMPTS[1], max_tokens=40, logprobs=3, json_schema=SCHEMA, temperature=1.0, seed=1))
    assert [top.id for top in masked.top_logprobs] == [top.id for top in plain[0].top_logprobs]


# ---------------------------------------------------------------- errors of single sequences


def test_a_failing_grammar_does_not_affect_other_sequences(
    model: ib.TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ids(model.generate(PROMPTS[2], max_tokens=60))
    mask, calls = Grammar.mask, iter(range(1000))

    def failing(self: Grammar, logits: Any) -> None:
        if next(calls) == 5:
            raise ib.GenerationError("no token may come next")
        mask(self, logits)

    neighbour = model.generate(PROMPTS[2], max_tokens=60)
    said = [next(neighbour).id]
    monkeypatch.setattr(Grammar, "mask", failing)
    broken = model.generate(PROMPTS[1], max_tokens=60, json_schema=SCHEMA)
    with pytest.raises(ib.GenerationError, match="no token may come next") as raised:
        broken.text()
    assert raised.value.partial is not None
    assert len(raised.value.partial.tokens) == 5
    assert said + ids(neighbour) == expected
    calls = iter([5])
    with pytest.raises(ib.GenerationError, match="no token may come next"):
        model.generate(PROMPTS[1], max_tokens=1, json_schema=SCHEMA).text()


def test_invalid_logits_do_not_affect_other_sequences(model: ib.TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ids(model.generate(PROMPTS[2], max_tokens=60))

    def failing(self: Evaluation, logits: Any) -> None:
        raise MemoryError("no room")

    neighbour = model.generate(PROMPTS[2], max_tokens=60)
    said = [next(neighbour).id]
    monkeypatch.setattr(Evaluation, "take", failing)
    with pytest.raises(ib.GenerationError, match="no room"):
        model.classify([PROMPTS[1]])
    assert said + ids(neighbour) == expected


def test_a_failing_step_ends_only_running_sequences(fresh: ib.TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ids(fresh.generate(PROMPTS[1], max_tokens=12))
    running = fresh.generate(PROMPTS[2], max_tokens=300)
    next(running)
    engine = fresh._engine  # type: ignore[attr-defined]

    def failing() -> None:
        raise RuntimeError("[metal::malloc] out of memory")

    monkeypatch.setattr(engine._generator, "next", failing)
    with pytest.raises(ib.GenerationError, match="out of memory"):
        running.text()
    assert ids(fresh.generate(PROMPTS[1], max_tokens=12)) == expected


def test_missing_memory_for_a_prefix_ends_only_running_sequences(
    fresh: ib.TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ids(fresh.generate(PROMPTS[1], max_tokens=12))
    running = fresh.generate(PROMPTS[2], max_tokens=300)
    next(running)
    engine = fresh._engine  # type: ignore[attr-defined]

    def failing(uids: list[int], return_prompt_caches: bool = False) -> None:
        raise RuntimeError("[metal::malloc] out of memory")

    monkeypatch.setattr(engine._generator, "remove", failing)
    assert ids(fresh.generate(PROMPTS[1], max_tokens=12)) == expected
    with pytest.raises(ib.GenerationError):
        running.text()
    assert ids(fresh.generate(PROMPTS[1], max_tokens=12)) == expected


def test_a_model_that_mlx_lm_cant_batch_has_one_slot(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch, model: ib.TextModel
) -> None:
    from mlx_lm.models.cache import KVCache

    monkeypatch.delattr(KVCache, "merge")
    with pytest.raises(ib.UnsupportedError, match="parallel_slots=2"):
        ib.load_model(directories["llama"], backend="mlx", parallel_slots=2)
    with ib.load_model(directories["llama"], backend="mlx") as single:
        assert single.parallel == 1
        monkeypatch.undo()
        for options in ({}, {"json_schema": SCHEMA, "max_tokens": 60}, {"repeat_penalty": 1.3}, {"logprobs": 2}):
            asked: dict[str, Any] = {"max_tokens": 20} | options
            one, other = (list(each.generate(PROMPTS[0], **asked)) for each in (single, model))
            assert ids(one) == ids(other)
        seeded = [ids(single.generate(PROMPTS[0], max_tokens=20, temperature=1.0, seed=9)) for _ in range(2)]
        assert seeded[0] == seeded[1] == ids(model.generate(PROMPTS[0], max_tokens=20, temperature=1.0, seed=9))
        stream = single.generate(PROMPTS[0], max_tokens=3)
        stream.text()
        assert stream.metrics.cached_tokens >= stream.metrics.prompt_tokens - 2


# ---------------------------------------------------------------- tokens and metrics


def test_memory_is_the_devices(fresh: ib.TextModel) -> None:
    stream = fresh.generate(FOX * 10, max_tokens=200)
    stream.text()

    def active() -> int:
        import mlx.core as mx

        return int(mx.get_active_memory())

    metrics = stream.metrics
    assert metrics.peak_memory_bytes >= metrics.active_memory_bytes > 0
    assert metrics.active_memory_bytes < 50_000_000  # not the process's, which is several times that
    assert on_worker(active) > 0


def test_text_that_names_special_tokens_is_text_where_it_is_counted(model: ib.TextModel) -> None:
    tokenizer = model._tokenizer  # type: ignore[attr-defined]
    assert model.count_tokens("<|im_end|>") > 1
    assert len(tokenizer.encode("<|im_end|>", special=True)) == 1
    assert "<|im_end|>" in tokenizer
    assert "<|no_such|>" not in tokenizer
    assert (tokenizer.piece(2, False), tokenizer.piece(2, True)) == (b"", b"<|im_end|>")
    assert tokenizer.piece(100_000, True) == b""
    assert model.count_tokens("half \ud83d of a pair") > 3


def test_a_short_prompt_does_not_wait_for_a_long_one_with_the_same_beginning(fresh: ib.TextModel) -> None:
    long = fresh.generate(FOX * 3 + "Once upon a time " * 40, max_tokens=4)
    order: list[str] = []

    def read(name: str, stream: ib.TokenStream) -> None:
        next(stream)
        order.append(name)
        stream.text()

    short = fresh.generate(FOX * 3 + "Why", max_tokens=4)
    begin = threading.Event()
    mlx_model.shared_worker().submit(begin.wait)
    threads = []
    for name, stream in (("long", long), ("short", short)):
        threads.append(threading.Thread(target=read, args=(name, stream)))
        threads[-1].start()
        until(lambda: fresh._scheduler.load[1] == len(threads))  # type: ignore[attr-defined]
    begin.set()
    for thread in threads:
        thread.join()
    assert order == ["short", "long"]
    assert short.metrics.cached_tokens > 0


@pytest.mark.parametrize("tags", [("<think>", "</think>"), ("<longcat_think>", "</longcat_think>")])
def test_think_tags_are_those_that_mlx_lm_infers(tags: tuple[str, str]) -> None:
    from mlx_lm.tokenizer_utils import _infer_thinking

    from inference_bridge.chat.markup import detect_format

    vocabulary = {name: place for place, name in enumerate((*tags, "word"))}

    class Tokenizer:
        def get_vocab(self) -> dict[str, int]:
            return vocabulary

    inferred: Any = _infer_thinking
    thinking = detect_format("{{ messages }}", vocabulary).thinking
    assert thinking is not None
    assert (thinking.opens, thinking.closes) == inferred(Tokenizer())[:2] == tags


# ---------------------------------------------------------------- damaged weights


def damaged(directory: Path) -> Path:
    """A model whose last norm is NaN."""
    path = write_tiny_mlx(directory) / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] = np.full_like(weights["model.norm.weight"], np.nan)
    save_file(weights, path, metadata={"format": "mlx"})
    return directory


@pytest.mark.parametrize("drafts", [False, True])
def test_nan_is_an_error(directories: dict[str, Path], tmp_path: Path, drafts: bool) -> None:
    path = damaged(tmp_path / "damaged")
    draft = directories["llama"] if drafts else None
    choices: list[dict[str, Any]] = [{}, {"temperature": 1.0}, {"repeat_penalty": 1.2}, {"json_schema": SCHEMA}]
    with ib.load_model(path, backend="mlx", draft_model=draft) as model:
        for options in ({"max_tokens": 1}, {"logprobs": 2}, *choices):
            with pytest.raises(ib.GenerationError, match="NaN"):
                model.generate("Hello", **{"max_tokens": 8, **options}).text()
        with pytest.raises(ib.GenerationError, match="NaN"):
            model.classify(["Hello"])


def test_nan_ends_its_own_sequence(model: ib.TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights can't be right for one prompt and NaN for another, so one answer's log probabilities are changed."""
    expected = model.generate(FOX, max_tokens=8).text()
    real = engine.with_logprobs

    def spoilt(sequence: Any, token: int, logits: Any) -> Any:
        return real(sequence, token, logits * np.nan if sequence.max_tokens == 9 else logits)

    monkeypatch.setattr(engine, "with_logprobs", spoilt)
    results = [model.generate(FOX, max_tokens=count) for count in (8, 9, 8)]
    assert results[0].text() == expected
    with pytest.raises(ib.GenerationError, match="NaN"):
        results[1].text()
    assert results[2].text() == expected
