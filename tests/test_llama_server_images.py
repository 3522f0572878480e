# SPDX-License-Identifier: Apache-2.0
"""Images, through the real llama-server: ours, and one that is spoken to by its address.

Both have the same random model and projector, and answer what libmtmd computes in this process.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from llama_cpp import mtmd_cpp

import inference_bridge as ib
from inference_bridge import Attachment, GenerateResult, Message, TextModel, Token, UnsupportedError
from inference_bridge.backends import http_facts
from inference_bridge.backends.llama_native import start
from inference_bridge.backends.server_model import ServerModel

from .managed import short_directory
from .servers import llama_server
from .tiny_gguf import WIDTH, write_llama
from .tiny_vision import BLUE, IMAGE_TOKENS, RED, write_projector

LENGTH = 1280
CLOSE = 1e-3
"""Between one order of the same sums and another, in natural logarithms."""

WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 4}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and its projector."""
    directory = tmp_path_factory.mktemp("model")
    return write_llama(directory / "tiny.gguf", 2048), write_projector(directory / "mmproj-tiny.gguf")


@pytest.fixture(scope="module", autouse=True)
def _runtime() -> Iterator[None]:
    with short_directory() as path, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(path))
        yield


@contextmanager
def loaded(backend: str, files: tuple[Path, Path]) -> Iterator[TextModel]:
    path, projector = files
    with ExitStack() as made:
        if backend == "http":
            address = made.enter_context(llama_server(path, slots=2, length=LENGTH, exact=True, projector=projector))
            yield made.enter_context(ib.load_model(address))
        else:
            extra = ["--flash-attn", "off", "--no-repack"]
            settings: dict[str, Any] = {"context_length": LENGTH, "parallel_slots": 2, "threads": 1, "extra": extra}
            yield made.enter_context(ib.load_model(path, backend=backend, mmproj=projector, **settings))


@pytest.fixture(scope="module", params=["llama_server", "http"])
def model(request: pytest.FixtureRequest, files: tuple[Path, Path]) -> Iterator[TextModel]:
    with loaded(request.param, files) as model:
        yield model


@pytest.fixture(scope="module")
def managed(files: tuple[Path, Path]) -> Iterator[TextModel]:
    with loaded("llama_server", files) as model:
        yield model


def image(data: bytes = RED) -> Attachment:
    return Attachment("image/png", data=data)


def asked(model: TextModel, *content: str | Attachment, **options: Any) -> GenerateResult:
    given = {"max_tokens": 4, "logprobs": 8} | options
    return model.chat([Message("user", content)], **given).result()


def likeliest(token: Token) -> dict[int | None, float]:
    return {top.id: top.logprob for top in token.top_logprobs}


class Seer:
    """llama.cpp's own way from a prompt and pictures to probabilities: libmtmd and its helper, in this process."""

    def __init__(self, path: Path, projector: Path, made: ExitStack) -> None:
        start()
        model_settings = llama_cpp.llama_model_default_params()
        model_settings.use_extra_bufts = False
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_settings)
        made.callback(llama_cpp.llama_model_free, model)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = LENGTH
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(model, settings)
        made.callback(llama_cpp.llama_free, self.context)
        seeing = mtmd_cpp.mtmd_context_params_default()
        seeing.use_gpu = seeing.print_timings = False
        seeing.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        eye = mtmd_cpp.mtmd_init_from_file(str(projector).encode(), model, seeing)
        assert eye
        self.eye = eye
        made.callback(mtmd_cpp.mtmd_free, eye)

    def logprobs(self, prompt: str, pictures: Sequence[bytes]) -> np.ndarray:
        """Of what follows `prompt`, in which <__media__> stands for each picture."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * len(pictures))()
        with ExitStack() as made:
            for place, data in enumerate(pictures):
                buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
                options = mtmd_cpp.mtmd_helper_init_opt_default()
                read = mtmd_cpp.mtmd_helper_bitmap_init_from_buf_wrapper(self.eye, buffer, len(data), False, options)
                bitmaps[place] = read.bitmap
                made.callback(mtmd_cpp.mtmd_bitmap_free, read.bitmap)
            chunks = mtmd_cpp.mtmd_input_chunks_init()
            made.callback(mtmd_cpp.mtmd_input_chunks_free, chunks)
            text = mtmd_cpp.mtmd_input_text(prompt.encode(), len(prompt.encode()), True, True)
            assert mtmd_cpp.mtmd_tokenize(self.eye, chunks, ctypes.byref(text), bitmaps, len(pictures)) == 0
            after = llama_cpp.llama_pos()
            evaluated = mtmd_cpp.mtmd_helper_eval_chunks(
                self.eye, self.context, chunks, 0, 0, 512, True, ctypes.byref(after)
            )
        assert evaluated == 0
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (260,)).astype(np.float64)
        normaliser = logits.max() + np.log(np.exp(logits - logits.max()).sum())
        return np.asarray(logits - normaliser)


@pytest.fixture(scope="module")
def seer(files: tuple[Path, Path]) -> Iterator[Seer]:
    with ExitStack() as made:
        yield Seer(*files, made)


# ---------------------------------------------------------------- what is seen


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        ((image(),), "<__media__>"),
        (("a", image(), "b"), "a<__media__>b"),
        (("b", image(), "a"), "b<__media__>a"),
        (("a", "c", image(), "b", "d"), "ac<__media__>bd"),  # llama-server would put a newline between texts
        ((image(), "a", image(BLUE)), "<__media__>a<__media__>"),
        ((image(BLUE), "a", image()), "<__media__>a<__media__>"),
    ],
    ids=["alone", "between", "exchanged", "several texts", "two", "two exchanged"],
)
def test_text_and_images_are_evaluated_in_their_order(
    content: tuple[str | Attachment, ...], prompt: str, model: TextModel, seer: Seer
) -> None:
    pictures = [part.data for part in content if isinstance(part, Attachment) and part.data is not None]
    expected = seer.logprobs(f"<user>{prompt}\n<assistant>", pictures)
    result = asked(model, *content)
    found = likeliest(result.tokens[0])
    assert len(found) == 8
    assert found == pytest.approx({id: expected[id] for id in found if id is not None}, abs=CLOSE)
    assert result.tokens[0].id == expected.argmax()
    assert result.metrics.prompt_tokens == 1 + len(f"<user>{prompt}\n<assistant>") + len(pictures) * (
        IMAGE_TOKENS - len("<__media__>")
    )


def test_what_an_image_shows_counts(model: TextModel) -> None:
    red, blue, none = (likeliest(asked(model, "a", *seen).tokens[0]) for seen in ([image()], [image(BLUE)], []))
    assert red != blue
    assert none not in (red, blue)
    again = asked(model, "a", image())
    assert likeliest(again.tokens[0]) == pytest.approx(red, abs=CLOSE)
    assert again.metrics.cached_tokens > IMAGE_TOKENS  # it was not encoded again


@pytest.mark.parametrize("place", ["path", "data: URL", "data: URL of percents", "type unknown"])
def test_wherever_the_image_is(place: str, model: TextModel, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(RED)
    attachments = {
        "path": Attachment("image/png", path=str(tmp_path / "red.png")),
        "data: URL": Attachment("image/png", url="data:image/png;base64," + base64.b64encode(RED).decode()),
        "data: URL of percents": Attachment("image/png", url="data:image/png," + "".join(f"%{one:02X}" for one in RED)),
        "type unknown": Attachment("image/*", data=RED),
    }
    found = likeliest(asked(model, "a", attachments[place]).tokens[0])
    assert found == pytest.approx(likeliest(asked(model, "a", image()).tokens[0]), abs=CLOSE)


@contextmanager
def gallery() -> Iterator[str]:
    """The address of a picture on a server."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(RED)))
            self.end_headers()
            self.wfile.write(RED)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/red.png"
        finally:
            server.shutdown()
            thread.join()


def test_an_image_by_its_url_is_fetched_by_the_server(model: TextModel) -> None:
    with gallery() as url:
        there = Attachment("image/png", url=url)
        found = likeliest(asked(model, "a", there).tokens[0])
        assert found == pytest.approx(likeliest(asked(model, "a", image()).tokens[0]), abs=CLOSE)
        with pytest.raises(UnsupportedError, match="tools with attachments: .* send images as data"):
            asked(model, "a", there, tools=[WEATHER])
    with pytest.raises(ib.ServerError):
        asked(model, "a", there)


def test_images_in_any_turn(model: TextModel) -> None:
    call = ib.ToolCall("1", "weather", {"city": "Rome"})
    turns = [
        Message("system", ["You see ", image(BLUE)]),
        Message("user", "What is the weather?"),
        Message("assistant", "", [call]),
        Message("tool", [image(), "as above"], tool_call_id="1"),
    ]
    seen = model.chat(turns, max_tokens=1, logprobs=8).result()
    turns[3] = Message("tool", [image(BLUE), "as above"], tool_call_id="1")
    other = model.chat(turns, max_tokens=1, logprobs=8).result()
    assert likeliest(seen.tokens[0]) != likeliest(other.tokens[0])
    assert seen.metrics.prompt_tokens == other.metrics.prompt_tokens > 2 * IMAGE_TOKENS


# ---------------------------------------------------------------- with everything else


def test_tools_and_schemas_hold_beside_an_image(model: TextModel) -> None:
    """llama-server's own /chat/completions would leave tools out that the template does not know."""
    options: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 200, "logprobs": 0}
    stream = model.chat([Message("user", ["a", image()])], temperature=1.0, seed=1, top_k=1, **options)
    text = stream.text()
    (call,) = stream.tool_calls
    assert (text, call.name, type(call.arguments["city"]), stream.finish_reason) == ("", "weather", str, "tool_calls")
    free = asked(model, "a", image(), tools=[WEATHER])
    assert free.metrics.prompt_tokens > asked(model, "a", image()).metrics.prompt_tokens + 300  # they were shown
    answer = asked(model, "a", image(), json_schema={"enum": ["yes", "no"]}, max_tokens=40)
    assert answer.text in ('"yes"', '"no"')


def test_tools_that_can_not_be_forced_together_are_refused(model: TextModel) -> None:
    """With an image or without: neither a grammar nor the template could say what the second one is."""
    tools = [
        {"name": name, "parameters": {"type": "object", "$defs": {"a": {"type": kind}}, "properties": {}}}
        for name, kind in (("one", "string"), ("two", "integer"))
    ]
    with pytest.raises(UnsupportedError, match="forcing one of these tools: .* definitions of one name that differ"):
        asked(model, "a", tools=tools, tool_choice="required")


def test_tokens_have_ids_and_stops_hold(model: TextModel) -> None:
    whole = asked(model, "a", image(), max_tokens=12, logprobs=0)
    assert None not in {token.id for token in whole.tokens}
    assert len(whole.tokens) == whole.metrics.generated_tokens == 12
    stopped = asked(model, "a", image(), max_tokens=12, logprobs=0, stop=[whole.text[5:7]])
    assert (stopped.text, stopped.finish_reason) == (whole.text[:5], "stop")
    by_token = asked(model, "a", image(), max_tokens=12, logprobs=0, stop_tokens=[whole.tokens[5].id])
    assert whole.text.startswith(by_token.text)
    assert (by_token.finish_reason, len(by_token.tokens) <= 5) == ("stop", True)


async def test_async_and_neighbours(model: TextModel) -> None:
    """Two slots, and more than two callers: what one sees, and what is wrong with its image, is nothing to the next."""
    contents = [("a",), ("a", image()), ("a", image(b"no image")), ("b",), ("a", image(BLUE)), ("Once",)]
    alone = [asked(model, *content) for place, content in enumerate(contents) if place != 2]
    streams = [model.achat([Message("user", content)], max_tokens=4, logprobs=8) for content in contents]
    together = await asyncio.gather(*(stream.result() for stream in streams), return_exceptions=True)
    assert isinstance(together.pop(2), ib.ServerError)
    for expected, found in zip(alone, together, strict=True):
        assert isinstance(found, GenerateResult)
        assert found.text == expected.text
        assert likeliest(found.tokens[0]) == pytest.approx(likeliest(expected.tokens[0]), abs=CLOSE)


def test_a_batch_goes_on_beside_images(model: TextModel) -> None:
    prompts = ["Once", "a", "b and"]
    expected = [result.text for result in model.batch_generate(prompts, max_tokens=6)]
    with model.chat([Message("user", ["a", image()])], max_tokens=200) as seeing:
        next(seeing)
        assert [result.text for result in model.batch_generate(prompts, max_tokens=6)] == expected


# ---------------------------------------------------------------- what can't be


@pytest.mark.parametrize("data", [b"", b"no image", RED[:40], RED[:-30]], ids=["empty", "text", "header", "cut"])
def test_a_damaged_image_is_told(data: bytes, model: TextModel) -> None:
    with pytest.raises(ib.ServerError, match="400 Bad Request: Failed to load image") as caught:
        asked(model, "What is this?", image(data))
    assert caught.value.status == 400
    assert asked(model, "a", image()).text


def test_what_is_no_attachment_is_told_at_the_call(managed: TextModel, tmp_path: Path) -> None:
    for attachment, told in (
        (Attachment("image/png", path=str(tmp_path / "gone.png")), "gone.png can't be read: No such file"),
        (Attachment("image/png", path=str(tmp_path)), "can't be read: Is a directory"),
        (Attachment("image/png", url="data:image/png;base64,%%%"), "data: URL holds no base64"),
    ):
        with pytest.raises(ValueError, match=told):
            managed.chat([Message("user", ["a", attachment])])


def test_images_fill_the_context(model: TextModel) -> None:
    with pytest.raises(ib.ContextLengthExceededError) as caught:
        asked(model, *[image()] * 80)
    assert (caught.value.prompt_tokens, caught.value.context_length) == (19 + 80 * IMAGE_TOKENS, LENGTH)


def test_a_model_of_text_alone_refuses_before_any_work(files: tuple[Path, Path]) -> None:
    with ib.load_model(files[0], backend="llama_server", context_length=512) as model:
        assert isinstance(model, ServerModel)
        assert "images" not in model.capabilities
        with pytest.raises(UnsupportedError, match="llama_server does not support image/png attachments"):
            asked(model, "a", image())
        assert model.process.pid is None


def test_what_is_said_before_it_runs_is_what_its_server_says(managed: TextModel) -> None:
    assert isinstance(managed, ServerModel)
    assert "images" in managed.capabilities
    assert "audios" not in managed.capabilities
    said = http_facts.ask(managed.process.connect())
    assert (managed.capabilities, managed.facts.takes_media) == (said.capabilities, said.takes_media)
    with pytest.raises(UnsupportedError, match="audio/wav"):
        asked(managed, "a", Attachment("audio/wav", data=b"RIFF"))


def test_a_projector_of_another_model(files: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_projector(tmp_path / "mmproj.gguf", width=WIDTH + 32)
    with (
        ib.load_model(files[0], backend="llama_server", mmproj=other, context_length=512) as model,
        pytest.raises(ib.ModelLoadError, match="mismatch between text model"),
    ):
        asked(model, "a", image())
