# SPDX-License-Identifier: Apache-2.0
"""The llama_cpp backend on the real small model, from a caller's view."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference_bridge import (
    ContextLengthExceededError,
    EmbeddingModel,
    GenerateConfig,
    GenerationError,
    GenerationTimeoutError,
    LoadConfig,
    Message,
    ModelClosedError,
    ModelLoadError,
    ModelNotFoundError,
    TextModel,
    UnsupportedError,
    load_model,
)
from inference_bridge.availability import install_command
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
from inference_bridge.backends.llama_cpp.engine import LlamaEngine
from inference_bridge.backends.llama_cpp.model import LlamaModel

from ...parts.leaks import threads_since
from ...parts.models.tiny import until
from ...parts.models.tiny_gguf import write_adapter, write_embedding, write_incomplete, write_llama

CONTEXT = 512


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Iterator[TextModel]:
    with LlamaCppBackend().load_model(str(demo_model_path), LoadConfig(context_length=CONTEXT)) as loaded:
        yield loaded


def idle(model: TextModel, seconds: float = 60.0) -> bool:
    """Whether every slot becomes free."""
    deadline = time.monotonic() + seconds
    while any(model._scheduler.load):  # type: ignore[attr-defined]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


# ---------------------------------------------------------------- what it is


def test_info(model: TextModel) -> None:
    info = model.info
    assert (model.model_type, info.architecture, info.vocab_size) == ("llama", "llama", 49152)
    assert (info.num_layers, info.hidden_size, info.context_length) == (30, 576, CONTEXT)
    assert (info.quant_bits, info.quant_group) == (4, 32)


def test_count_tokens(model: TextModel) -> None:
    assert model.count_tokens("The capital of France is") == 5
    assert model.count_tokens("") == 0


def test_metrics_add_up(model: TextModel) -> None:
    stream = model.generate("Once upon a time there was", max_tokens=12)
    assert len(list(stream)) == 12
    metrics = stream.metrics
    assert metrics.prompt_tokens == 6
    assert metrics.generated_tokens == 12
    assert 0 < metrics.prefill_seconds <= metrics.time_to_first_token < metrics.total_seconds
    assert 0 < metrics.decode_seconds < metrics.total_seconds
    assert metrics.prefill_tokens_per_second > 0
    assert metrics.decode_tokens_per_second > 0
    assert metrics.peak_memory_bytes >= metrics.active_memory_bytes > 50_000_000
    assert model.metrics == metrics


def test_stats_count_every_operation(model: TextModel) -> None:
    before = model.stats()  # type: ignore[attr-defined]
    model.generate("One, two,", max_tokens=3).text()
    with pytest.raises(ContextLengthExceededError):
        model.generate("word " * 600).text()
    after = model.stats()  # type: ignore[attr-defined]
    assert after.operations == before.operations + 2
    assert after.failed == before.failed + 1
    assert after.generated_tokens == before.generated_tokens + 3


# ---------------------------------------------------------------- where text ends


def test_max_tokens_one(model: TextModel) -> None:
    stream = model.generate("The capital of France is", max_tokens=1)
    assert stream.text() == " Paris"
    assert stream.finish_reason == "length"


def test_stop_at_the_first_token(model: TextModel) -> None:
    stream = model.generate("The capital of France is", stop=" Paris")
    assert stream.text() == ""
    assert stream.finish_reason == "stop"


def test_stop_straddles_tokens(model: TextModel) -> None:
    plain = model.generate("The capital of France is", max_tokens=20)
    tokens = list(plain)
    first, second = tokens[4].text, tokens[5].text  # "The", " United"
    stop = first[-2:] + second[:3]
    stream = model.generate("The capital of France is", max_tokens=20, stop=[stop, "never there"])
    assert stream.text() == plain.text()[: plain.text().index(stop)]
    assert stream.finish_reason == "stop"


def test_stop_tokens_end_the_text_unseen(model: TextModel) -> None:
    paris = next(model.generate("The capital of France is", max_tokens=1)).id
    assert paris is not None
    stream = model.generate("The capital of France is", stop_tokens=[paris])
    assert list(stream) == []
    assert stream.finish_reason == "stop"
    assert stream.metrics.generated_tokens == 1


def test_the_model_ends_with_its_end_token(model: TextModel) -> None:
    stream = model.chat([Message("user", "Tell me the capital of France.")], max_tokens=-1)
    assert "Paris" in stream.text()
    assert stream.finish_reason == "stop"
    assert "<|im_end|>" not in stream.text()
    assert stream.metrics.generated_tokens == len(stream.result().tokens) + 1  # the end token is counted


def test_every_token_has_its_id_and_whole_characters(model: TextModel) -> None:
    stream = model.generate("Emojis: 🎉🎊🎈👋🌍🦊", max_tokens=40)
    tokens = list(stream)
    assert len(tokens) == 40
    assert all(token.id is not None for token in tokens)
    assert all("\ufffd" not in token.text for token in tokens[:-1])
    assert any(token.text == "" for token in tokens)  # a character of several tokens


# ---------------------------------------------------------------- the context's end


def context_of(model: TextModel, tokens: int) -> str:
    """Return a prompt with the given number of tokens."""
    prompt = "a" + " a" * (tokens - 1)
    assert model.count_tokens(prompt) == tokens
    return prompt


def test_prompt_one_token_over_the_context(model: TextModel) -> None:
    stream = model.generate(context_of(model, CONTEXT + 1))
    with pytest.raises(ContextLengthExceededError) as caught:
        next(stream)
    assert (caught.value.prompt_tokens, caught.value.context_length) == (CONTEXT + 1, CONTEXT)
    assert str(CONTEXT) in str(caught.value)


def test_prompt_that_fills_the_context(model: TextModel) -> None:
    stream = model.generate(context_of(model, CONTEXT), max_tokens=-1)
    assert len(list(stream)) == 1
    assert stream.finish_reason == "length"


def test_running_into_the_context(model: TextModel) -> None:
    stream = model.generate(context_of(model, CONTEXT - 10), max_tokens=-1, stop_tokens=[])
    assert len(list(stream)) == 11
    assert stream.finish_reason == "length"


def test_empty_prompt(model: TextModel) -> None:
    with pytest.raises(ValueError, match="empty"):
        model.generate("")


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"max_tokens": 0}, ValueError, "max_tokens"),
        ({"max_tokens": -2}, ValueError, "max_tokens"),
        ({"temperature": -0.1}, ValueError, "temperature"),
        ({"temperature": math.nan}, ValueError, "temperature"),
        ({"temperature": "warm"}, TypeError, "temperature"),
        ({"top_p": 1.5}, ValueError, "top_p"),
        ({"tempreature": 1}, TypeError, "temperature"),
        ({"stop": ""}, ValueError, "stop"),
        ({"stop": 3}, TypeError, "stop"),
        ({"seed": -1}, ValueError, "seed"),
        ({"timeout": 0}, ValueError, "timeout"),
    ],
)
def test_wrong_options_fail_at_the_call(
    options: dict[str, Any], error: type[Exception], says: str, model: TextModel
) -> None:
    before = model.stats().operations  # type: ignore[attr-defined]
    with pytest.raises(error, match=says):
        model.generate("Hello", **options)
    assert model.stats().operations == before  # type: ignore[attr-defined]


def test_seed_repeats_and_differs(model: TextModel) -> None:
    def sample(seed: int | None) -> str:
        return model.generate("Once upon a time", temperature=1.0, seed=seed, max_tokens=24).text()

    assert sample(7) == sample(7)
    assert len({sample(seed) for seed in (1, 2, 3, None)}) == 4


def test_zero_means_off(model: TextModel) -> None:
    off = GenerateConfig(temperature=1.0, seed=5, max_tokens=16, top_k=0, top_p=0.0, min_p=0.0, repeat_penalty=0.0)
    plain = GenerateConfig(temperature=1.0, seed=5, max_tokens=16)
    assert model.generate("Once upon a time", off).text() == model.generate("Once upon a time", plain).text()


def test_top_k_of_one_is_greedy(model: TextModel) -> None:
    greedy = model.generate("The quick brown fox", max_tokens=16).text()
    assert model.generate("The quick brown fox", max_tokens=16, temperature=2.0, top_k=1).text() == greedy


def test_penalties_reduce_repetition(model: TextModel) -> None:
    prompt = "a b a b a b a b a b a b"
    plain = model.generate(prompt, max_tokens=16).text()
    assert plain == " a b" * 8
    for option in ({"repeat_penalty": 3.0}, {"presence_penalty": 50.0}, {"frequency_penalty": 50.0}):
        text = model.generate(prompt, max_tokens=16, **option).text()  # type: ignore[arg-type]
        assert " a" not in text, option


def test_logprobs(model: TextModel) -> None:
    tokens = list(model.generate("The capital of France is", max_tokens=4, logprobs=5))
    for token in tokens:
        assert token.logprob is not None
        assert len(token.top_logprobs) == 5
        best = token.top_logprobs[0]
        assert (best.id, best.logprob) == (token.id, token.logprob)  # greedy
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1.0
    assert tokens[0].top_logprobs[0].text == " Paris"
    assert next(model.generate("The capital of France is", max_tokens=1)).logprob is None


def test_an_option_the_backend_lacks(model: TextModel) -> None:
    with pytest.raises(UnsupportedError, match="return_logits"):
        model.generate("Hello", return_logits=True)


# ---------------------------------------------------------------- many callers, and leaving early


def test_concurrent_threads_get_the_answers_of_single_calls(model: TextModel) -> None:
    prompts = [f"The number after {n} is" for n in range(10)]
    alone = [model.generate(prompt, max_tokens=12).text() for prompt in prompts]
    together: dict[int, str] = {}

    def run(index: int) -> None:
        together[index] = model.generate(prompts[index], max_tokens=12).text()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[index] for index in range(len(prompts))] == alone


def test_seeded_sampling_does_not_depend_on_concurrent_sequences(model: TextModel) -> None:
    def sample() -> str:
        return model.generate("In the beginning", temperature=1.0, seed=11, max_tokens=24).text()

    alone = sample()
    others = [model.generate(f"Chapter {n}:", max_tokens=60) for n in range(3)]
    for other in others:
        next(other)
    assert sample() == alone
    for other in others:
        other.close()


def test_closing_midway_frees_the_slot(model: TextModel) -> None:
    stream = model.generate("Count: 1, 2, 3,", max_tokens=-1)
    for _ in range(3):
        next(stream)
    stream.close()
    assert stream.finish_reason == "cancelled"
    assert idle(model)
    assert stream.metrics.prompt_tokens == 11
    assert list(stream) == []


def test_closing_ends_within_one_step(model: TextModel) -> None:
    engine = model._scheduler._engine  # type: ignore[attr-defined]
    stream = model.generate("Count: 1, 2, 3,", max_tokens=-1)
    next(stream)
    steps = 0
    step = engine.step

    def counted() -> Any:
        nonlocal steps
        steps += 1
        return step()

    engine.step = counted
    try:
        stream.close()
        assert idle(model)
    finally:
        engine.step = step
    assert steps <= 2  # the one under way, and one that had begun to count


def test_dropping_a_stream_frees_the_slot(model: TextModel) -> None:
    stream = model.generate("Count: 1, 2, 3,", max_tokens=-1)
    next(stream)
    del stream
    assert idle(model)


def test_a_half_read_stream_does_not_block_other_operations(model: TextModel) -> None:
    half = [model.generate(f"Item {n}", max_tokens=100) for n in range(4)]
    for stream in half:
        next(stream)
    assert model.generate("The capital of France is", max_tokens=1).text() == " Paris"
    assert len(list(half[0])) == 99
    for stream in half:
        stream.close()


def test_close_from_another_thread_wakes_the_reader(model: TextModel) -> None:
    stream = model.generate("Count: 1, 2, 3,", max_tokens=-1)
    next(stream)
    closer = threading.Timer(0.05, stream.close)
    closer.start()
    list(stream)
    assert stream.finish_reason == "cancelled"
    closer.join()


def test_timeout(model: TextModel) -> None:
    stream = model.generate("Count: 1, 2, 3,", max_tokens=-1, timeout=600)
    first = next(stream)
    stream._request.deadline = time.monotonic()  # however long the first token took, its time is over now
    with pytest.raises(GenerationTimeoutError) as caught:
        list(stream)
    assert caught.value.partial is not None
    assert caught.value.partial.tokens[0] == first
    assert isinstance(caught.value, TimeoutError)
    assert idle(model)


def test_timeout_of_one_that_waits_for_a_slot(demo_model_path: Path) -> None:
    config = LoadConfig(context_length=512, parallel_slots=1)
    with LlamaCppBackend().load_model(str(demo_model_path), config) as model:
        first = model.generate("Count: 1, 2, 3,", max_tokens=-1)
        next(first)
        with pytest.raises(GenerationTimeoutError):
            model.generate("Hello", timeout=0.05).text()
        assert next(first).text
        first.close()


async def test_async_streams_in_one_loop(model: TextModel) -> None:
    prompts = [f"The number after {n} is" for n in range(6)]
    texts = await asyncio.gather(*[model.agenerate(prompt, max_tokens=8).text() for prompt in prompts])
    assert texts == [model.generate(prompt, max_tokens=8).text() for prompt in prompts]


async def test_cancelling_the_task_frees_the_slot(model: TextModel) -> None:
    stream = model.agenerate("Count: 1, 2, 3,", max_tokens=-1)
    await anext(stream)
    task = asyncio.create_task(stream.text())
    await asyncio.sleep(0.1)  # for it to wait in
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(idle, model)


def test_async_works_in_one_loop_after_another(model: TextModel) -> None:
    async def ask() -> str:
        return await model.agenerate("The capital of France is", max_tokens=1).text()

    assert [asyncio.run(ask()), asyncio.run(ask())] == [" Paris", " Paris"]


def test_streams_start_no_threads(model: TextModel) -> None:
    before = threading.enumerate()
    streams = [model.generate(f"Item {n}", max_tokens=-1) for n in range(8)]
    for stream in streams[:4]:
        next(stream)
    assert threads_since(before) == []
    for stream in streams:
        stream.close()


def test_batch_generate(model: TextModel) -> None:
    prompts = [f"The number after {n} is" for n in range(9)] + ["word " * 600]
    results = model.batch_generate(prompts, max_tokens=6)
    assert [result.text for result in results[:9]] == [model.generate(p, max_tokens=6).text() for p in prompts[:9]]
    assert isinstance(results[9].error, ContextLengthExceededError)
    assert all(result.error is None for result in results[:9])


# ---------------------------------------------------------------- a second turn


def test_a_second_turn_evaluates_only_new_tokens(model: TextModel) -> None:
    turns = [Message("user", "Name a colour, please. Just one word for a colour.")]
    first = model.chat(turns, max_tokens=16)
    turns += [Message("assistant", first.text()), Message("user", "Another?")]
    second = model.chat(turns, max_tokens=4)
    second.text()
    assert second.metrics.cached_tokens >= first.metrics.prompt_tokens
    assert second.metrics.cached_tokens < second.metrics.prompt_tokens


def test_the_same_prompt_again_gives_the_same(model: TextModel) -> None:
    prompt = "A very long story begins like this: once upon a time, in a land of hills,"
    streams = [model.generate(prompt, max_tokens=20) for _ in range(3)]
    assert len({stream.text() for stream in streams}) == 1
    assert streams[2].metrics.cached_tokens == streams[2].metrics.prompt_tokens - 2


# ---------------------------------------------------------------- the end


def test_close_ends_running_streams(demo_model_path: Path) -> None:
    before = threading.enumerate()
    model = LlamaCppBackend().load_model(str(demo_model_path), LoadConfig(context_length=512))
    stream = model.generate("Count: 1, 2, 3,", max_tokens=-1)
    next(stream)
    waiting = [model.generate("Hello", max_tokens=-1) for _ in range(6)]
    model.close()
    model.close()
    with pytest.raises(ModelClosedError):
        list(stream)
    for other in waiting:
        with pytest.raises(ModelClosedError):
            next(other)
    with pytest.raises(ModelClosedError):
        model.generate("Hello")
    with pytest.raises(ModelClosedError):
        model.count_tokens("Hello")
    assert threads_since(before) == []


def test_a_dropped_model_is_freed(demo_model_path: Path) -> None:
    before = threading.enumerate()
    model = LlamaCppBackend().load_model(str(demo_model_path), LoadConfig(context_length=512))
    assert isinstance(model, LlamaModel)
    model.generate("Hello", max_tokens=2).text()
    engine = model._engine
    assert isinstance(engine, LlamaEngine)
    context = engine._context
    del model
    until(lambda: context.pointer is None and not threads_since(before))


# ---------------------------------------------------------------- loading


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"nothing\.gguf"):
        LlamaCppBackend().load_model(str(tmp_path / "nothing.gguf"), LoadConfig())


def test_a_file_cut_short(tmp_path: Path, demo_model_path: Path) -> None:
    path = tmp_path / "short.gguf"
    with demo_model_path.open("rb") as whole:
        path.write_bytes(whole.read(20_000_000))
    with pytest.raises(ModelLoadError, match=r"short\.gguf.*missing"):
        LlamaCppBackend().load_model(str(path), LoadConfig())


def test_text_named_gguf(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("Not a model.")
    assert not LlamaCppBackend().can_load(str(path))
    with pytest.raises(ModelLoadError, match=r"text\.gguf"):
        LlamaCppBackend().load_model(str(path), LoadConfig())


def test_extra_reaches_llama_cpp(demo_model_path: Path) -> None:
    backend = LlamaCppBackend()
    config = LoadConfig(context_length=512, parallel_slots=1, extra={"n_ubatch": 64, "use_extra_bufts": True})
    with backend.load_model(str(demo_model_path), config) as model:
        assert model.generate("The capital of France is", max_tokens=1).text() == " Paris"
    for extra, says in (({"n_ubach": 64}, "n_ubach"), ({"n_ubatch": "many"}, "n_ubatch"), ({"n_ctx": 1}, "n_ctx")):
        with pytest.raises(TypeError, match=says):
            backend.load_model(str(demo_model_path), LoadConfig(context_length=512, extra=extra))


def test_an_adapter_changes_what_it_says_however_its_memory_grows(
    model: TextModel, demo_model_path: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "lora.gguf")
    config = LoadConfig(context_length=1024, parallel_slots=1, adapters=[str(adapter)])
    with LlamaCppBackend().load_model(str(demo_model_path), config) as adapted:
        prompt = "The capital of France is"
        said = adapted.generate(prompt, max_tokens=6).text()
        assert said != model.generate(prompt, max_tokens=6).text()
        adapted.generate("word " * 530, max_tokens=1).text()  # for which the context is made anew
        assert adapted.generate(prompt, max_tokens=6).text() == said


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "inference_bridge.backends.llama_cpp.backend.find_spec",
        lambda name: None if name == "llguidance" else find(name),
    )
    availability = LlamaCppBackend().availability()
    assert availability.reason == "the package llguidance is not installed"
    assert install_command("llama-cpp") in availability.hint


def test_an_invalid_adapter_is_refused(demo_model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.gguf"
    path.write_text("no adapter")
    with pytest.raises(ModelLoadError, match=r"lora\.gguf"):
        LlamaCppBackend().load_model(str(demo_model_path), LoadConfig(context_length=512, adapters=[str(path)]))


def test_native_log_goes_to_logging(
    demo_model_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG, logger="inference_bridge"):
        LlamaCppBackend().load_model(str(demo_model_path), LoadConfig(context_length=512)).close()
    assert "llama_model_loader" in caplog.text
    assert capfd.readouterr().err == ""


def test_the_error_for_a_refused_model_has_llama_cpp_s_reason(tmp_path: Path) -> None:
    """Other log lines are not part of the error: they have another level."""
    path = write_incomplete(tmp_path / "incomplete.gguf")
    with pytest.raises(ModelLoadError, match=r"tensor 'output_norm\.weight' not found") as caught:
        LlamaCppBackend().load_model(str(path), LoadConfig())
    assert "EOG" not in str(caught.value)


def spoil(path: Path, key: str, value: float) -> str:
    """Write another value behind a key of a GGUF file. Returns its name."""
    content, before = path.read_bytes(), key.encode() + struct.pack("<I", 6)  # 6: a 32-bit float
    start = content.index(before) + len(before)
    path.write_bytes(content[:start] + struct.pack("<f", value) + content[start + 4 :])
    return str(path)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.8, "seed": 1}, {"regex": "a+"}, {"logprobs": 2}], ids=" ".join
)
def test_a_model_that_computes_nan_gives_an_error(options: dict[str, Any], tmp_path: Path) -> None:
    path = spoil(write_llama(tmp_path / "llama.gguf"), "llama.rope.freq_base", 0.0)
    with LlamaCppBackend().load_model(path, LoadConfig(threads=1)) as model:
        with pytest.raises(GenerationError, match="NaN"):
            model.generate("hello", max_tokens=4, **options).result()
        with pytest.raises(GenerationError, match="NaN"):
            model.classify(["hello"])


def test_an_embedding_model_that_computes_nan_gives_an_error(tmp_path: Path) -> None:
    path = write_embedding(tmp_path / "bert.gguf")
    content = path.read_bytes()
    path.write_bytes(content[:-1024] + struct.pack("<f", math.nan) * 256)  # the last of the weights
    with load_model(f"llama_cpp:{path}", threads=1) as model:
        assert isinstance(model, EmbeddingModel)
        with pytest.raises(GenerationError, match="NaN"):
            model.embed(["a cat"])
