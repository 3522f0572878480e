# SPDX-License-Identifier: Apache-2.0
"""Sounds, with a GGUF model in this process, on a managed server, on another server, and through llm.

The model is a small one of Ultravox's architecture; its answers are compared with libmtmd's helper in this process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inference_bridge as ib
from inference_bridge import Attachment, GenerationError, Message, TextModel, UnsupportedError
from langchain_inference_bridge import ChatInferenceBridge

from ....adapters.llm.test_cli import assert_one_line, run
from ....parts.models.seeing import CLOSE, LENGTH, Seer, asked, check_order, image, likeliest
from ....parts.models.tiny_audio import HIGH, LOW, MP3, SECONDS, SOUND_TOKENS, tone, wav, write_ears, write_senses
from ....parts.models.tiny_gguf import write_llama
from ....parts.models.tiny_vision import IMAGE_TOKENS, _write_qwen_text
from ....parts.servers.processes import llama_server
from .test_sound_header import xing

pytestmark = pytest.mark.usefixtures("short_runtime_directory")

Files = tuple[Path, Path]
NEAR = 0.05
"""Between two builds of llama.cpp for different processors, in natural logarithms."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its projector, and two sounds."""
    path = tmp_path_factory.mktemp("models")
    write_llama(path / "hears.gguf", 2048)
    write_ears(path / "mmproj-hears.gguf")
    (path / "low.wav").write_bytes(LOW)
    (path / "high.wav").write_bytes(HIGH)
    return path


@pytest.fixture(scope="module")
def files(directory: Path) -> Files:
    return directory / "hears.gguf", directory / "mmproj-hears.gguf"


@pytest.fixture(scope="module")
def seer(files: Files) -> Iterator[Seer]:
    with ExitStack() as made:
        yield Seer(*files, made)


def opened(files: Files, backend: str = "llama_cpp", **settings: Any) -> TextModel:
    given: dict[str, Any] = {"context_length": LENGTH, "parallel_slots": 2, "threads": 1, "mmproj": files[1]}
    if backend == "llama_server":
        given["extra"] = ["--flash-attn", "off", "--no-repack"]
    else:
        given["deterministic"] = True
    return ib.load_model(files[0], backend=backend, **given | settings)


@pytest.fixture(scope="module", params=["llama_cpp", "llama_server", "http"])
def model(request: pytest.FixtureRequest, files: Files) -> Iterator[TextModel]:
    with ExitStack() as made:
        if request.param == "http":
            server = llama_server(files[0], slots=2, length=LENGTH, exact=True, projector=files[1])
            yield made.enter_context(ib.load_model(made.enter_context(server)))
        else:
            yield made.enter_context(opened(files, request.param))


@pytest.fixture(scope="module")
def here(files: Files) -> Iterator[TextModel]:
    with opened(files) as model:
        yield model


def sound(data: bytes = LOW, type: str = "audio/wav") -> Attachment:
    return Attachment(type, data=data)


# ---------------------------------------------------------------- wherever it runs


def test_capabilities_of_the_model(model: TextModel) -> None:
    assert "audios" in model.capabilities
    assert "images" not in model.capabilities
    with pytest.raises(UnsupportedError, match="image/png"):
        asked(model, "a", image())


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        ((sound(),), "<__media__>"),
        (("a", sound(HIGH), "b"), "a<__media__>b"),
        ((sound(), "a", sound(HIGH)), "<__media__>a<__media__>"),
        ((sound(HIGH), "a", sound()), "<__media__>a<__media__>"),
    ],
    ids=["alone", "between", "two", "two exchanged"],
)
def test_text_and_sounds_are_evaluated_in_their_order(
    content: tuple[str | Attachment, ...], prompt: str, model: TextModel, seer: Seer
) -> None:
    check_order(model, seer, content, prompt, each=SOUND_TOKENS, near=CLOSE if model.backend == "llama_cpp" else NEAR)


def test_the_answer_depends_on_the_sound(model: TextModel) -> None:
    low, high, none = (likeliest(asked(model, "a", *heard).tokens[0]) for heard in ([sound()], [sound(HIGH)], []))
    assert max(abs(low[id] - high[id]) for id in low.keys() & high.keys()) > 2 * NEAR
    assert none not in (low, high)
    again = asked(model, "a", sound())
    assert likeliest(again.tokens[0]) == pytest.approx(low, abs=CLOSE)


@pytest.mark.parametrize("place", ["path", "data: URL", "MP3", "type unknown"])
def test_wherever_the_sound_is(place: str, model: TextModel, directory: Path) -> None:
    attachments = {
        "path": Attachment("audio/x-wav", path=str(directory / "low.wav")),
        "data: URL": Attachment("audio/wav", url="data:audio/wav," + "".join(f"%{one:02X}" for one in LOW)),
        "MP3": sound(MP3, "audio/mpeg"),
        "type unknown": sound(LOW, "audio/*"),
    }
    result = asked(model, "a", attachments[place])
    assert result.metrics.prompt_tokens == asked(model, "a", sound()).metrics.prompt_tokens
    if place != "MP3":
        assert likeliest(result.tokens[0]) == pytest.approx(likeliest(asked(model, "a", sound()).tokens[0]), abs=CLOSE)


def test_a_long_sound_is_heard_in_parts(model: TextModel) -> None:
    once, twice = (asked(model, "a", sound(tone(220, seconds))) for seconds in (SECONDS - 1, SECONDS + 10))
    assert twice.metrics.prompt_tokens - once.metrics.prompt_tokens == SOUND_TOKENS
    with pytest.raises(ib.ContextLengthExceededError):
        asked(model, "a", sound(tone(220, 10 * SECONDS)))


def test_files_that_are_not_sounds_are_refused(model: TextModel) -> None:
    for data in (b"no sound", LOW[:30]):
        with pytest.raises(GenerationError):
            asked(model, "a", sound(data))
    assert asked(model, "a", sound()).metrics.prompt_tokens  # and it goes on


# ---------------------------------------------------------------- in this process


def test_sounds_that_libmtmd_cannot_decode_are_refused(here: TextModel) -> None:
    for data, told in (
        (b"fLaC\0\0\0\x22" + bytes(50), "audio 1 of 1 can't be read: it is not a WAV or MP3"),
        (LOW[:-4], "audio 1 of 1 can't be read: it ends at byte 16,040"),
        (wav(np.zeros(0)), "audio 1 of 1 can't be read: it is empty"),
        (MP3[:4] + bytes(20), "audio 1 of 1 can't be read: it is damaged"),
        (xing(50_000_000) + MP3, "audio 1 of 1 can't be read: it claims 50,000,000 frames"),  # 80 GB of samples
    ):
        with pytest.raises(GenerationError, match=told):
            asked(here, "a", sound(data))
    with pytest.raises(UnsupportedError, match="attachments by their URL"):
        here.chat([Message("user", ["a", Attachment("audio/wav", url="http://127.0.0.1:9/a.wav")])])


def test_a_sound_in_memory_is_not_encoded_again(here: TextModel) -> None:
    turns = [Message("user", ["a", sound(tone(330))])]
    first = here.chat(turns, max_tokens=5).result()
    turns += [Message("assistant", first.text), Message("user", "and?")]
    assert here.chat(turns, max_tokens=5).result().metrics.cached_tokens > SOUND_TOKENS
    turns[0] = Message("user", ["a", sound(tone(550))])
    assert here.chat(turns, max_tokens=5).result().metrics.cached_tokens < SOUND_TOKENS


def test_positions_with_dimensions(directory: Path) -> None:
    """The positions of a sound are equal in each dimension, and the result equals the helper's bit by bit."""
    files = _write_qwen_text(directory / "qwen.gguf"), directory / "mmproj-hears.gguf"
    with ExitStack() as made:
        expected = Seer(*files, made).logprobs("<user>a<__media__>b\n<assistant>", [HIGH])
        model = made.enter_context(opened(files))
        found = likeliest(asked(model, "a", sound(HIGH), "b", logprobs=20).tokens[0])
        assert found == {id: expected[id] for id in found if id is not None}


def test_a_model_that_sees_and_hears(directory: Path) -> None:
    files = directory / "hears.gguf", write_senses(directory / "mmproj-senses.gguf")
    with ExitStack() as made:
        expected = Seer(*files, made).logprobs("<user><__media__>a<__media__>\n<assistant>", [LOW, image().data or b""])
        model = made.enter_context(opened(files))
        assert {"images", "audios"} < model.capabilities
        result = asked(model, sound(), "a", image(), logprobs=20)
        found = likeliest(result.tokens[0])
        assert found == {id: expected[id] for id in found if id is not None}
        assert result.metrics.prompt_tokens == 1 + len("<user>a\n<assistant>") + SOUND_TOKENS + IMAGE_TOKENS
        for attachment, told in (
            (sound(image().data or b""), "audio 1 of 1 can't be read: it is not a WAV or MP3"),
            (image(LOW), "image 1 of 1 can't be read: it is not a PNG"),
        ):
            with pytest.raises(GenerationError, match=told):
                asked(model, attachment)


@pytest.fixture(scope="module")
def miscounted(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Of the real Ultravox's proportions, in which llama.cpp loses the last token of a sound."""
    directory = tmp_path_factory.mktemp("miscounted")
    return write_llama(directory / "hears.gguf", 2048), write_ears(directory / "mmproj-hears.gguf", stack=8)


def test_a_projector_that_would_end_the_process_is_not_used(
    miscounted: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UnsupportedError, match="miscounts .*: use the backend llama_server"):
        opened(miscounted)
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(miscounted[0].parent))
    with opened(miscounted, mmproj=None) as model:
        assert "audios" not in model.capabilities
    assert "mmproj-hears.gguf is left out" in caplog.text


def test_the_error_for_a_crashed_server_quotes_the_failed_assertion(miscounted: Files) -> None:
    with opened(miscounted, "llama_server") as model:
        with pytest.raises(ib.ServerCrashedError, match="ended by SIGABRT") as caught:
            asked(model, "a", sound())
        log = str(caught.value)
        assert "Invalid number of output tokens" in log
        assert "ggml_abort" not in log  # which is in the stack, by a debugger's account or without one
        assert asked(model, "a").text


# ---------------------------------------------------------------- from llm and LangChain


@pytest.fixture
def _found(directory: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(directory))


@pytest.mark.usefixtures("_found")
@pytest.mark.parametrize("backend", ["llama_cpp", "llama_server"])
def test_llm(backend: str, directory: Path, files: Files) -> None:
    asking = ["-m", f"{backend}:hears", "-o", "max_tokens", "8", "-o", "temperature", "0"]
    with opened(files, backend) as model:
        expected = model.chat([Message("user", ["a", sound(HIGH)])], max_tokens=8).text()
    done = run(*asking, "-a", str(directory / "high.wav"), "a")
    assert (done.returncode, done.stdout) == (0, expected + "\n")
    assert "cut off" in done.stderr
    listed = json.loads(run("models", "--json", "-m", f"{backend}:hears").stdout)
    assert listed[0]["attachment_types"] == ["audio/mpeg", "audio/wav"]
    (directory / "wrong.wav").write_bytes(b"no sound")
    told = "audio 1 of 1 can't be read" if backend == "llama_cpp" else "Failed to load"
    assert_one_line(run(*asking, "--at", str(directory / "wrong.wav"), "audio/wav", "a"), told)


def test_langchain(here: TextModel) -> None:
    chat = ChatInferenceBridge(text_model=here, max_tokens=8, temperature=0)
    assert chat.profile is not None
    assert chat.profile["audio_inputs"] is True
    block = {"type": "audio", "base64": Attachment("audio/wav", data=HIGH).to_dict()["data"], "mime_type": "audio/wav"}
    answer = chat.invoke([{"role": "user", "content": [{"type": "text", "text": "a"}, block]}])
    assert answer.content == here.chat([Message("user", ["a", sound(HIGH)])], max_tokens=8).text()
