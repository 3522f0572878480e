# SPDX-License-Identifier: Apache-2.0
"""Images in this process: the encoder thread, the three kinds of positions, and refused images."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from llama_cpp import mtmd_cpp

import inference_bridge as ib
from inference_bridge import Attachment, GenerateResult, GenerationError, Message, UnsupportedError
from inference_bridge.backends.llama_cpp import engine as llama_engine
from inference_bridge.backends.llama_cpp.context import NativeSampler
from inference_bridge.backends.llama_cpp.library import start
from inference_bridge.backends.llama_cpp.media import image_header
from inference_bridge.backends.llama_cpp.media.projector import NativeProjector
from inference_bridge.backends.llama_cpp.model import LlamaModel

from ....fuzz.targets import CORPUS
from ....parts.models.seeing import LENGTH, Seeing, Seer, asked, image, likeliest
from ....parts.models.tiny import until
from ....parts.models.tiny_gguf import CHAT_TEMPLATE, WIDTH, write_llama
from ....parts.models.tiny_vision import (
    BLUE,
    IMAGE_TOKENS,
    RED,
    bomb,
    noise,
    write_gemma3,
    write_llava,
    write_projector,
    write_qwen,
)

Files = tuple[Path, Path]
KINDS = {"causal": write_llava, "each other": write_gemma3, "two dimensions": write_qwen}
BEFORE = len("<user>a") + 1
"""Tokens of a chat that says "a" before its image."""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    """A model and its projector, of each kind."""
    directory = tmp_path_factory.mktemp("models")
    return {name: write(directory) for name, write in KINDS.items()}


@pytest.fixture(scope="module")
def files(kinds: dict[str, Files]) -> Files:
    return kinds["causal"]


def opened(files: Files, **settings: Any) -> LlamaModel:
    given: dict[str, Any] = {"context_length": LENGTH, "parallel_slots": 3, "threads": 1, "deterministic": True}
    given |= {"chat_template": CHAT_TEMPLATE} | settings  # the model whose images attend to each other has none
    model = ib.load_model(files[0], backend="llama_cpp", mmproj=files[1], **given)
    assert isinstance(model, LlamaModel)
    return model


@pytest.fixture(scope="module")
def model(files: Files) -> Iterator[LlamaModel]:
    with opened(files) as model:
        yield model


@pytest.fixture(scope="module")
def seer(files: Files) -> Iterator[Seer]:
    with ExitStack() as made:
        yield Seer(*files, made)


class TestInProcess(Seeing):
    pass


# ---------------------------------------------------------------- results


@pytest.mark.parametrize("kind", KINDS)
def test_results_without_determinism_agree_within_rounding(kind: str, kinds: dict[str, Files]) -> None:
    """Flash attention rounds to 16 bits on the way; another picture is farther away than that."""
    tolerance = 0.02
    prompt = "<user>a<__media__>b\n<assistant>"
    with ExitStack() as made:
        seer = Seer(*kinds[kind], made)
        expected, others = (seer.logprobs(prompt, [noise(48, 32, number)]) for number in (0, 1))
        for batch_size in (512, 18):
            model = made.enter_context(opened(kinds[kind], batch_size=batch_size, deterministic=False))
            found = likeliest(asked(model, "a", image(noise(48, 32)), "b", logprobs=20).tokens[0])
            away = max(abs(found[id] - expected[id]) for id in found if id is not None)
            assert away < tolerance < max(abs(found[id] - others[id]) for id in found if id is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_results_agree_with_libmtmd_s_helper(kind: str, kinds: dict[str, Files]) -> None:
    """To the last bit, with batches of any size."""
    pictures = [noise(48, 32), noise(40, 64, 1)]
    with ExitStack() as made:
        seer = Seer(*kinds[kind], made)
        expected = seer.logprobs("<user>a<__media__>b<__media__>\n<assistant>", pictures)
        for batch_size in (512, 18):
            model = made.enter_context(opened(kinds[kind], batch_size=batch_size))
            result = asked(model, "a", image(pictures[0]), "b", image(pictures[1]), logprobs=20)
            assert likeliest(result.tokens[0]) == {id: expected[id] for id in likeliest(result.tokens[0]) if id}
            other = asked(model, "a", image(pictures[1]), "b", image(pictures[0]), logprobs=20)
            assert likeliest(other.tokens[0]) != likeliest(result.tokens[0])


def in_8_bits(files: Files) -> Files:
    """With weights of 32 bits llama.cpp computes one token a little otherwise than several."""
    path = files[0].with_suffix(".q8_0.gguf")
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, 1
    start()
    assert llama_cpp.llama_model_quantize(bytes(files[0]), bytes(path), ctypes.byref(settings)) == 0
    return path, files[1]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_image_and_concurrent_sequences_do_not_affect_each_other(kind: str, kinds: dict[str, Files]) -> None:
    """To the last bit."""
    files = in_8_bits(kinds[kind])
    pictures = [image(noise(48, 32)), image(noise(24, 56, 1)), image()]
    contents = [
        ("a", pictures[0]),
        ("a text",),
        (pictures[1], "b", pictures[2]),
        ("another, of which there is more than of the one before",),
        ("a", pictures[0], "and"),
        ("a", pictures[2], "and"),
    ]
    with opened(files) as model:
        alone = [asked(model, *content, max_tokens=12) for content in contents]
    with opened(files) as model:
        streams = [model.achat([Message("user", content)], max_tokens=12, logprobs=8) for content in contents]
        together = await asyncio.gather(*(stream.result() for stream in streams))
    for one, other in zip(alone, together, strict=True):
        assert one.tokens == other.tokens


@pytest.mark.parametrize("name", sorted(path.name for path in (CORPUS / "image").iterdir()))
def test_each_format_is_read(name: str, model: LlamaModel) -> None:
    picture = Attachment("image/*", path=str(CORPUS / "image" / name))
    assert asked(model, "a", picture).metrics.prompt_tokens == asked(model, "a", image()).metrics.prompt_tokens


# ---------------------------------------------------------------- memory


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The keys of the images that were encoded since."""
    keys = []
    encode = NativeProjector.encode

    def counted(self: NativeProjector, medium: Any) -> None:
        keys.append(medium.key)
        encode(self, medium)

    monkeypatch.setattr(NativeProjector, "encode", counted)
    return keys


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_turn_has_the_image_in_memory(kind: str, kinds: dict[str, Files], encoded: list[int]) -> None:
    turns = [Message("user", ["a", image(noise(48, 32)), "b"])]
    with opened(kinds[kind], parallel_slots=1) as model:
        first = model.chat(turns, max_tokens=5).result()
        assert len(encoded) == 1
        turns += [Message("assistant", first.text), Message("user", "and?")]
        second = model.chat(turns, max_tokens=5, logprobs=8).result()
        assert second.metrics.cached_tokens >= first.metrics.prompt_tokens - len("<assistant>")
        assert len(encoded) == 1
        # The same place, and as many tokens, but another picture.
        turns[0] = Message("user", ["a", image(noise(48, 32, 1)), "b"])
        other = model.chat(turns, max_tokens=5, logprobs=8).result()
        assert BEFORE <= other.metrics.cached_tokens < BEFORE + IMAGE_TOKENS + 1 + len("<start_of_image>")
        assert other.metrics.prompt_tokens == second.metrics.prompt_tokens
        assert (len(encoded), len(set(encoded))) == (2, 2)
    with opened(kinds[kind]) as model:
        assert model.chat(turns, max_tokens=5, logprobs=8).result().tokens == other.tokens


async def test_an_image_that_many_share_is_encoded_once(files: Files, encoded: list[int]) -> None:
    """And its memory copied: each looks for it once the one before has been evaluated."""
    content: list[str | Attachment] = ["x" * 40, image(), "b"]
    with opened(files) as model:
        streams = [model.achat([Message("user", [*content, str(n)])], max_tokens=4) for n in range(3)]
        results = await asyncio.gather(*(stream.result() for stream in streams))
        assert len(encoded) == 1
        assert sorted(result.metrics.cached_tokens > 40 + IMAGE_TOKENS for result in results) == [False, True, True]
        assert [asked(model, *content, str(n)).text for n in range(3)] == [result.text for result in results]


@pytest.mark.parametrize("kind", KINDS)
def test_memory_grows_under_images(kind: str, kinds: dict[str, Files]) -> None:
    """Memory is counted in cells, not in positions: two-dimensional positions are fewer than cells."""
    picture = image(noise(72, 72))
    short: list[str | Attachment] = ["a", picture]
    with (
        opened(kinds[kind], context_length=2048) as model,
        opened(kinds[kind], context_length=2048, batch_size=2048) as whole,
    ):
        grows, is_there = model._engine, whole._engine
        assert isinstance(grows, llama_engine.LlamaEngine)
        assert isinstance(is_there, llama_engine.LlamaEngine)
        assert (grows._context.length, is_there._context.length) == (512, 2048)
        first = asked(model, *short, max_tokens=500)  # beneath an answer
        assert (first.finish_reason, grows._context.length) == ("length", 1024)
        assert first.tokens == asked(whole, *short, max_tokens=500).tokens
        text = 1 + len("<user>a\n<assistant>")
        long: list[str | Attachment] = [*short, "b"] * (1200 // (first.metrics.prompt_tokens - text + 2))
        second = asked(model, *long, max_tokens=5)  # and for a prompt
        assert second.metrics.prompt_tokens > 1024
        assert grows._context.length == 2048
        assert second.tokens == asked(whole, *long, max_tokens=5).tokens
        # What was there has moved along.
        again = asked(model, *short, max_tokens=500)
        assert again.metrics.cached_tokens >= BEFORE + IMAGE_TOKENS
        assert again.tokens == first.tokens


def test_a_context_is_full_when_its_cells_are(kinds: dict[str, Files]) -> None:
    with opened(kinds["two dimensions"], context_length=512) as model:
        result = asked(model, "a", image(noise(96, 96)), max_tokens=600, logprobs=0)
        assert result.finish_reason == "length"
        assert result.metrics.prompt_tokens + result.metrics.generated_tokens == 512 + 1


def test_penalties_are_for_text(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    recent: list[list[int]] = []

    class Recorded(NativeSampler):
        def __init__(self, sampling: Any, tokens: Any, *rest: Any) -> None:
            recent.append(list(tokens))
            super().__init__(sampling, tokens, *rest)

    monkeypatch.setattr(llama_engine, "NativeSampler", Recorded)
    result = asked(model, "a", image(), "b", repeat_penalty=1.5, max_tokens=20, logprobs=0)
    assert len(result.tokens) == 20
    assert len(recent[0]) == result.metrics.prompt_tokens - IMAGE_TOKENS
    assert min(recent[0]) >= 0


# ---------------------------------------------------------------- while an image is encoded


class Gate:
    """Makes encoding slow, like a large picture."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self._open = threading.Event(), threading.Event()
        encode = mtmd_cpp.mtmd_encode_chunk

        def held(projector: Any, chunk: Any) -> int:
            self.reached.set()
            assert self._open.wait(60)
            return int(encode(projector, chunk))

        monkeypatch.setattr(mtmd_cpp, "mtmd_encode_chunk", held)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


def started(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """A thread that makes a call and keeps its result."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def seeing() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "inference-bridge-see"]


def test_other_sequences_decode_while_an_image_is_encoded(files: Files, gate: Gate) -> None:
    with opened(files) as model:
        running = model.chat([Message("user", "Once")], max_tokens=40)
        next(running)
        thread, outcome = started(lambda: asked(model, "a", image(), max_tokens=4))
        assert gate.reached.wait(60)
        assert len(running.result().tokens) == 40  # what ran before
        assert len(asked(model, "b").tokens) == 4  # and what came after
        assert not outcome
        gate.open()
        thread.join()
        assert isinstance(outcome[0], GenerateResult)
        assert outcome[0].text == asked(model, "a", image(), max_tokens=4).text


def test_the_worker_sleeps_while_only_an_image_is_encoded(files: Files, gate: Gate) -> None:
    with opened(files) as model:
        thread, _ = started(lambda: asked(model, "a", image()))
        assert gate.reached.wait(60)
        steps: list[int] = []
        step = model._engine.step
        model._engine.step = lambda: steps.append(1) or step()  # type: ignore[method-assign, func-returns-value]
        for _ in range(3):
            model._worker.call(lambda: None)  # between two turns
        assert steps == []
        gate.open()
        thread.join()
        assert steps


def test_a_stream_ends_at_once_while_its_image_is_encoded(files: Files, gate: Gate) -> None:
    with opened(files) as model:
        stream = model.chat([Message("user", ["a", image()])])
        thread, outcome = started(stream.result)
        assert gate.reached.wait(60)
        stream.close()
        thread.join()
        assert outcome
        assert stream.finish_reason == "cancelled"
        with pytest.raises(ib.GenerationTimeoutError):
            asked(model, "a", image(BLUE), timeout=0.2)  # it waits for the encoder
        until(lambda: model._scheduler.load == (0, 0))
        gate.open()
        assert asked(model, "a", image()).text


async def test_a_task_is_cancelled_while_its_image_is_encoded(files: Files, gate: Gate) -> None:
    with opened(files) as model:
        task = asyncio.create_task(model.achat([Message("user", ["a", image()])]).result())
        await asyncio.to_thread(gate.reached.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        until(lambda: model._scheduler.load == (0, 0))
        gate.open()


def test_closing_a_model_waits_for_the_encoder_and_its_streams_do_not(files: Files, gate: Gate) -> None:
    model = opened(files)
    native, projector = model._native, model._projector
    assert projector is not None
    thread, outcome = started(lambda: asked(model, "a", image()))
    assert gate.reached.wait(60)
    closing, _ = started(model.close)
    thread.join()
    assert isinstance(outcome[0], ib.ModelClosedError)
    assert closing.is_alive()  # the gate is shut
    assert native.pointer
    assert projector.pointer
    gate.open()
    closing.join()
    assert (native.pointer, projector.pointer) == (None, None)
    until(lambda: not seeing())


def test_a_dropped_model_is_freed(files: Files, capfd: pytest.CaptureFixture[str]) -> None:
    """Nor does llama.cpp write on the terminal."""
    model: LlamaModel | None = opened(files)
    assert model is not None
    native, projector = model._native, model._projector
    assert projector is not None
    assert asked(model, "a", image()).text
    del model
    gc.collect()
    until(lambda: native.pointer is None and projector.pointer is None)
    assert not seeing()
    assert capfd.readouterr() == ("", "")


LEAVING = """
import sys, threading, time
from inference_bridge import Attachment, Message, load_model
path, projector, picture = sys.argv[1:]
model = load_model(path, backend="llama_cpp", mmproj=projector, context_length=2048, threads=1)
stream = model.chat([Message("user", ["a", Attachment("image/png", path=picture)])])
threading.Thread(target=list, args=(stream,), daemon=True).start()
while "inference-bridge-see" not in [thread.name for thread in threading.enumerate()]:
    time.sleep(0.001)
"""


def test_a_program_that_ends_while_an_image_is_encoded(kinds: dict[str, Files], tmp_path: Path) -> None:
    picture = tmp_path / "large.png"
    picture.write_bytes(noise(256, 256))
    command = [sys.executable, "-c", LEAVING, *map(str, kinds["two dimensions"]), str(picture)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---------------------------------------------------------------- refusals


CLAIMS = {
    "PNG": bomb(20000, 20000, 100),
    "GIF": b"GIF89a" + (20000).to_bytes(2, "little") * 2 + bytes(40),
    "BMP": b"BM" + bytes(12) + (40).to_bytes(4, "little") + (20000).to_bytes(4, "little") * 2 + bytes(40),
    "JPEG": b"\xff\xd8\xff\xe0\x00\x04\x00\x00\xff\xff\xc2\x00\x11\x08" + (20000).to_bytes(2, "big") * 2 + bytes(40),
}
"""Pictures that claim 20,000 pixels square, and have none."""


@pytest.mark.parametrize("format", CLAIMS)
def test_a_picture_is_refused_by_the_size_it_claims(format: str, model: LlamaModel) -> None:
    with pytest.raises(GenerationError, match="image 2 of 2 can't be read: it has 20000 x 20000 pixels, more than"):
        asked(model, "a", image(), image(CLAIMS[format]))


def test_a_picture_may_not_unpack_to_more_than_it_claims(model: LlamaModel) -> None:
    with pytest.raises(GenerationError, match="it unpacks to more than its 8 x 8 pixels"):
        asked(model, "a", image(bomb(8, 8, 1 << 20)))
    image_header.check(noise(300, 200))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not a PNG, JPEG, GIF or BMP"),
        (b"no image", "not a PNG, JPEG, GIF or BMP"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(40), "not a PNG, JPEG, GIF or BMP"),
        (b"\x00\x00\x00\x20ftypisom" + bytes(40), "not a PNG, JPEG, GIF or BMP"),
        (RED[:40], "damaged"),
        (RED[:-30], "damaged"),
        (RED[:50] + bytes(20), "damaged"),
        (b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x08\x00\x08" + bytes(40), "damaged"),
    ],
    ids=["empty", "text", "sound", "film", "header", "cut", "zeros", "JPEG"],
)
def test_a_file_that_is_not_an_image_is_refused_before_decoding(
    data: bytes, told: str, model: LlamaModel, seer: Seer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    probe = tmp_path / "ffprobe"
    probe.write_text(f"#!/bin/sh\n: > '{mark}'\n")
    probe.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(GenerationError, match=f"image 1 of 1 can't be read: it is {told}"):
        asked(model, "What is this?", image(data))
    assert not mark.exists()
    assert asked(model, "a", image()).text
    # libmtmd as it comes would have started it.
    buffer = (ctypes.c_uint8 * 8).from_buffer_copy(b"no image")
    mtmd_cpp.mtmd_helper_bitmap_init_from_buf_wrapper(
        seer.eye, buffer, 8, False, mtmd_cpp.mtmd_helper_init_opt_default()
    )
    assert mark.exists()


def test_libmtmd_s_marker_in_a_prompt_is_text(model: LlamaModel) -> None:
    result = asked(model, "<__media__>", image())
    assert result.metrics.prompt_tokens == 1 + len("<user><__media__>\n<assistant>") + IMAGE_TOKENS


def test_urls_are_not_downloaded(model: LlamaModel) -> None:
    with pytest.raises(UnsupportedError, match="attachments by their URL: .* fetch it, and give its bytes as data="):
        model.chat([Message("user", [Attachment("image/png", url="http://127.0.0.1:9/red.png")])])


def test_a_template_that_leaves_an_image_out(files: Files) -> None:
    template = "{{ messages[-1]['content'] }}"
    turns = [Message("user", ["a", image()]), Message("assistant", "b"), Message("user", "c")]
    with (
        opened(files, chat_template=template) as model,
        pytest.raises(UnsupportedError, match="the chat template shows 0 of 1"),
    ):
        model.chat(turns)


def test_an_image_that_must_be_evaluated_whole_has_to_fit(kinds: dict[str, Files]) -> None:
    """llama.cpp would end the process."""
    with opened(kinds["each other"], batch_size=8) as model:
        with pytest.raises(UnsupportedError, match="an image of 16 tokens: load it with batch_size=16"):
            asked(model, "a", image())
        assert asked(model, "a").text


def test_a_model_of_text_alone_refuses_before_any_work(files: Files) -> None:
    with ib.load_model(files[0], backend="llama_cpp", context_length=512, threads=1) as model:
        assert "images" not in model.capabilities
        with pytest.raises(UnsupportedError, match="llama_cpp does not support image/png attachments"):
            model.chat([Message("user", [image()])])
    assert "audios" not in model.capabilities


# ---------------------------------------------------------------- the projector


def test_a_projector_that_can_not_be_used(files: Files, tmp_path: Path) -> None:
    other = write_projector(tmp_path / "mmproj.gguf", width=WIDTH + 32)
    for projector, error, told in (
        (other, ib.ModelLoadError, "can't load the projector .*mmproj.gguf"),
        (files[0], ib.ModelLoadError, "is not a projector"),
        (tmp_path / "gone.gguf", ib.ModelNotFoundError, "there is no projector"),
    ):
        with pytest.raises(error, match=told):
            opened((files[0], projector))


def test_a_projector_without_a_chat_template(files: Files, tmp_path: Path) -> None:
    silent = write_llama(tmp_path / "silent.gguf", template="")
    with pytest.raises(UnsupportedError, match="mmproj: the model has no chat template"):
        ib.load_model(silent, backend="llama_cpp", mmproj=files[1], context_length=512)


def test_the_projector_next_to_the_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_llama(tmp_path / "sees.gguf", 2048)
    write_projector(tmp_path / "mmproj-sees.gguf")
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(tmp_path))
    with ib.load_model("llama_cpp:sees", context_length=512, threads=1) as model:
        assert "images" in model.capabilities
        assert asked(model, "a", image()).text
