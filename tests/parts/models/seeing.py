# SPDX-License-Identifier: Apache-2.0
"""Tests of images with a GGUF model in this process, on a managed server, and on another server.

The model is a small one of LLaVA's architecture; its answers are compared with libmtmd's helper in this process.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from llama_cpp import mtmd_cpp

from inference_bridge import (
    Attachment,
    ContextLengthExceededError,
    GenerateResult,
    GenerationError,
    Message,
    TextModel,
    Token,
    ToolCall,
)
from inference_bridge.backends.llama_cpp.library import start

from .tiny_vision import BLUE, IMAGE_TOKENS, RED

LENGTH = 1280
"""The context of `model` and of a Seer."""

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
        self.size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
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
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (self.size,)).astype(np.float64)
        normaliser = logits.max() + np.log(np.exp(logits - logits.max()).sum())
        return np.asarray(logits - normaliser)


def check_order(
    model: TextModel, seer: Seer, content: Sequence[str | Attachment], prompt: str, *, each: int, near: float
) -> tuple[Token, int]:
    """The model evaluates `content` as the Seer does `prompt`, in which a medium takes `each` tokens: to within `near`.

    Gives the first token of its answer, and the id that the Seer finds likeliest.
    """
    media = [part.data for part in content if isinstance(part, Attachment) and part.data is not None]
    expected = seer.logprobs(f"<user>{prompt}\n<assistant>", media)
    result = asked(model, *content)
    found = likeliest(result.tokens[0])
    assert len(found) == 8
    assert found == pytest.approx({id: expected[id] for id in found if id is not None}, abs=near)
    rest = len(f"<user>{prompt}\n<assistant>") - len(media) * len("<__media__>")
    assert result.metrics.prompt_tokens == 1 + rest + len(media) * each
    return result.tokens[0], int(expected.argmax())


class Seeing:
    """To be inherited, where the fixtures `model`, of LLaVA's kind, and `seer` are."""

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
        self, content: tuple[str | Attachment, ...], prompt: str, model: TextModel, seer: Seer
    ) -> None:
        first, likeliest_id = check_order(model, seer, content, prompt, each=IMAGE_TOKENS, near=CLOSE)
        assert first.id == likeliest_id

    def test_what_an_image_shows_counts(self, model: TextModel) -> None:
        red, blue, none = (likeliest(asked(model, "a", *seen).tokens[0]) for seen in ([image()], [image(BLUE)], []))
        assert red != blue
        assert none not in (red, blue)
        again = asked(model, "a", image())
        assert likeliest(again.tokens[0]) == pytest.approx(red, abs=CLOSE)
        assert again.metrics.cached_tokens > IMAGE_TOKENS  # it was not encoded again

    @pytest.mark.parametrize("place", ["path", "data: URL", "data: URL of percents", "type unknown"])
    def test_wherever_the_image_is(self, place: str, model: TextModel, tmp_path: Path) -> None:
        (tmp_path / "red.png").write_bytes(RED)
        attachments = {
            "path": Attachment("image/png", path=str(tmp_path / "red.png")),
            "data: URL": Attachment("image/png", url="data:image/png;base64," + base64.b64encode(RED).decode()),
            "data: URL of percents": Attachment(
                "image/png", url="data:image/png," + "".join(f"%{one:02X}" for one in RED)
            ),
            "type unknown": Attachment("image/*", data=RED),
        }
        found = likeliest(asked(model, "a", attachments[place]).tokens[0])
        assert found == pytest.approx(likeliest(asked(model, "a", image()).tokens[0]), abs=CLOSE)

    def test_images_in_any_turn(self, model: TextModel) -> None:
        call = ToolCall("1", "weather", {"city": "Rome"})
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

    def test_tools_and_schemas_hold_beside_an_image(self, model: TextModel) -> None:
        """llama-server's own /chat/completions would leave tools out that the template does not know."""
        options: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 200, "logprobs": 0}
        stream = model.chat([Message("user", ["a", image()])], temperature=1.0, seed=1, top_k=1, **options)
        text = stream.text()
        (call,) = stream.tool_calls
        assert (text, call.name, type(call.arguments["city"]), stream.finish_reason) == (
            "",
            "weather",
            str,
            "tool_calls",
        )
        free = asked(model, "a", image(), tools=[WEATHER])
        assert free.metrics.prompt_tokens > asked(model, "a", image()).metrics.prompt_tokens + 300  # they were shown
        answer = asked(model, "a", image(), json_schema={"enum": ["yes", "no"]}, max_tokens=40)
        assert answer.text in ('"yes"', '"no"')

    def test_tokens_have_ids_and_stops_hold(self, model: TextModel) -> None:
        whole = asked(model, "a", image(), max_tokens=12, logprobs=0)
        assert None not in {token.id for token in whole.tokens}
        assert len(whole.tokens) == whole.metrics.generated_tokens == 12
        stopped = asked(model, "a", image(), max_tokens=12, logprobs=0, stop=[whole.text[5:7]])
        assert (stopped.text, stopped.finish_reason) == (whole.text[:5], "stop")
        by_token = asked(model, "a", image(), max_tokens=12, logprobs=0, stop_tokens=[whole.tokens[5].id])
        assert whole.text.startswith(by_token.text)
        assert (by_token.finish_reason, len(by_token.tokens) <= 5) == ("stop", True)

    async def test_async_and_neighbours(self, model: TextModel) -> None:
        """More callers than slots: the image of one caller, or a fault in it, does not affect the others."""
        contents = [("a",), ("a", image()), ("a", image(b"no image")), ("b",), ("a", image(BLUE)), ("Once",)]
        alone = [asked(model, *content) for place, content in enumerate(contents) if place != 2]
        streams = [model.achat([Message("user", content)], max_tokens=4, logprobs=8) for content in contents]
        together = await asyncio.gather(*(stream.result() for stream in streams), return_exceptions=True)
        assert isinstance(together.pop(2), GenerationError)
        for expected, found in zip(alone, together, strict=True):
            assert isinstance(found, GenerateResult)
            assert found.text == expected.text
            assert likeliest(found.tokens[0]) == pytest.approx(likeliest(expected.tokens[0]), abs=CLOSE)

    def test_a_batch_goes_on_beside_images(self, model: TextModel) -> None:
        prompts = ["Once", "a", "b and"]
        expected = [result.text for result in model.batch_generate(prompts, max_tokens=6)]
        with model.chat([Message("user", ["a", image()])], max_tokens=200) as seeing:
            next(seeing)
            assert [result.text for result in model.batch_generate(prompts, max_tokens=6)] == expected

    def test_images_fill_the_context(self, model: TextModel) -> None:
        with pytest.raises(ContextLengthExceededError) as caught:
            asked(model, *[image()] * 80)
        assert (caught.value.prompt_tokens, caught.value.context_length) == (19 + 80 * IMAGE_TOKENS, LENGTH)

    def test_what_is_no_attachment_is_told_at_the_call(self, model: TextModel, tmp_path: Path) -> None:
        for attachment, told in (
            (Attachment("image/png", path=str(tmp_path / "gone.png")), "gone.png' can't be read: No such file"),
            (Attachment("image/png", path=str(tmp_path)), "is not a regular file"),
            (Attachment("image/png", url="data:image/png;base64,%%%"), "data: URL does not contain valid base64"),
        ):
            with pytest.raises(ValueError, match=told):
                model.chat([Message("user", ["a", attachment])])
