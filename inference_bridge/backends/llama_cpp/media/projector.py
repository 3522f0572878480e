# SPDX-License-Identifier: Apache-2.0
"""libmtmd, made safe to call: a projector cuts a prompt with images and sounds into pieces, and encodes those.

What libmtmd can't read it would hand to ffprobe, where there is one in PATH: here it finds none.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from ...._concurrency.gate import Gate
from ....errors import GenerationError, ModelLoadError
from ..library import complaints, last_of, lib, log_to_logging, watch_load
from ..weights import NativeModel
from . import image_header, sound_header

mtmd: Any = import_module("llama_cpp.mtmd_cpp")

_NOWHERE = b"/nonexistent"
"""Where it is to look for ffmpeg."""


class Medium:
    """One image, or slice of an image, or half a minute of a sound, in a prompt.

    tokens     how many cells of the context's memory it fills
    positions  by how much it moves the next token's position: fewer, where positions have two dimensions
    key        what stands for each of its tokens in a list of token ids: a negative number that is the
               same for the same file alone
    causal     whether its tokens see only those before them. If not, they are evaluated in one piece
    rows       its embeddings, float32 [tokens, width], once it is encoded; `error` is why it can't be
    """

    def __init__(self, chunk: Any, *, place: int, causal: bool) -> None:
        self.chunk: Any = None
        self.tokens = int(mtmd.mtmd_input_chunk_get_n_tokens(chunk))
        self.positions = int(mtmd.mtmd_input_chunk_get_n_pos(chunk))
        self.causal = causal
        # Slices of one file share its id, which is its SHA-256: their place tells them apart.
        name = mtmd.mtmd_input_chunk_get_id(chunk) or b""
        digest = hashlib.sha256(b"%s %d %d" % (name, place, self.tokens)).digest()
        self.key = -1 - int.from_bytes(digest[:16], "little")
        self.rows: Any = None
        self.error: GenerationError | None = None
        self.seconds = 0.0
        self.chunk = mtmd.mtmd_input_chunk_copy(chunk)

    def done(self) -> None:
        """It is in the context's memory: only its numbers are needed now."""
        self.rows = None
        if self.chunk:
            mtmd.mtmd_input_chunk_free(self.chunk)
            self.chunk = None

    def __del__(self) -> None:
        self.done()


class NativeProjector:
    """`cut` may be called from any thread, `encode` by one at a time."""

    def __init__(
        self, path: str, model: NativeModel, *, threads: int, use_gpu: bool, stop: threading.Event | None = None
    ) -> None:
        """Load the file; `stop` is as NativeModel's."""
        log_to_logging(mtmd.mtmd_helper_log_set)  # which has a log of its own, on stderr
        params = mtmd.mtmd_context_params_default()
        params.use_gpu = use_gpu
        params.print_timings = params.warmup = False
        params.n_threads = threads
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_AUTO if use_gpu else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        watch_load(params, lambda _: None, stop)
        # libmtmd's own may stand in a prompt, where it would count as a picture.
        self.marker = f"<__media_{secrets.token_hex(16)}__>"
        params.media_marker = self.marker.encode()
        with complaints() as reasons:
            self.pointer: Any = mtmd.mtmd_init_from_file(os.fsencode(path), model.pointer, params)
        if not self.pointer:
            raise ModelLoadError(f"llama.cpp can't load the projector {path} for {model.path}: {last_of(reasons)}")
        self.capabilities = {
            *(["images"] if mtmd.mtmd_support_vision(self.pointer) else []),
            *(["audios"] if mtmd.mtmd_support_audio(self.pointer) else []),
        }
        self._has_dimensions = bool(mtmd.mtmd_decode_use_mrope(self.pointer))
        self._width = int(lib.llama_model_n_embd_inp(model.pointer))
        self._options = mtmd.mtmd_helper_init_opt_default()
        self._options.video_params.ffmpeg_bin_dir = _NOWHERE
        self.gate = Gate()

    # ------------------------------------------------ from a prompt to its pieces

    def cut(self, medium: tuple[str, bytes], what: str) -> list[list[int] | Medium]:
        """What stands in a prompt for a medium, which is ("image" or "audio", the file): token ids, and media.

        `what` names it in errors. Raises GenerationError where it can't be read.
        """
        kind, content = medium
        with self.gate:
            chunks = mtmd.mtmd_input_chunks_init()
            bitmap = None
            try:
                bitmap = self._read(kind, content, f"{kind} {what}")
                bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
                data = self.marker.encode()
                given = mtmd.mtmd_input_text(data, len(data), False, True)
                with complaints() as reasons:
                    code = mtmd.mtmd_tokenize(self.pointer, chunks, ctypes.byref(given), bitmaps, 1)
                if code != 0:
                    raise GenerationError(f"llama.cpp can't prepare {kind} {what}: {last_of(reasons)}")
                count = int(mtmd.mtmd_input_chunks_size(chunks))
                return [self._piece(mtmd.mtmd_input_chunks_get(chunks, place), place) for place in range(count)]
            finally:
                mtmd.mtmd_input_chunks_free(chunks)
                if bitmap:
                    mtmd.mtmd_bitmap_free(bitmap)

    def _read(self, kind: str, content: bytes, what: str) -> Any:
        try:
            (sound_header if kind == "audio" else image_header).check(content)
        except ValueError as error:
            raise GenerationError(f"{what} can't be read: {error}") from None
        buffer = (ctypes.c_uint8 * len(content)).from_buffer_copy(content)
        with complaints():  # which end with what it would have a video reader do
            read = mtmd.mtmd_helper_bitmap_init_from_buf_wrapper(
                self.pointer, buffer, len(content), False, self._options
            )
        if not read.bitmap:
            raise GenerationError(f"{what} can't be read: it is damaged")
        return read.bitmap

    def _piece(self, chunk: Any, place: int) -> list[int] | Medium:
        if mtmd.mtmd_input_chunk_get_type(chunk) != mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
            causal = not mtmd.mtmd_decode_use_non_causal(self.pointer, chunk)
            return Medium(chunk, place=place, causal=causal)
        count = ctypes.c_size_t()
        tokens = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
        return list(tokens[: count.value])

    # ------------------------------------------------ from a medium to what is evaluated

    def encode(self, medium: Medium) -> None:
        """Compute its embeddings. Seconds, for a large picture on a CPU, and not to be interrupted."""
        begun = time.monotonic()
        try:
            with self.gate, complaints() as reasons:
                if mtmd.mtmd_encode_chunk(self.pointer, medium.chunk) != 0:
                    raise GenerationError(f"llama.cpp can't encode an attachment: {last_of(reasons)}")
                found = mtmd.mtmd_get_output_embd(self.pointer)
                medium.rows = np.ctypeslib.as_array(found, (medium.tokens, self._width)).copy()
        except Exception as error:
            medium.error = error if isinstance(error, GenerationError) else GenerationError(str(error))
        medium.seconds = time.monotonic() - begun

    def positions(self, medium: Medium, first: int) -> Any:
        """int32 [1, tokens], or [4, tokens] where they have dimensions; `first` is that of its first token."""
        along = np.arange(first, first + medium.tokens, dtype=np.int32)[None]
        if not self._has_dimensions:
            return along
        if mtmd.mtmd_input_chunk_get_type(medium.chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_AUDIO:
            return np.repeat(along, 4, axis=0)
        places = (mtmd.mtmd_decoder_pos * medium.tokens)()
        image = mtmd.mtmd_input_chunk_get_tokens_image(medium.chunk)
        mtmd.mtmd_helper_image_get_decoder_pos(image, first, places)
        return np.array([(at.t, at.y, at.x, at.z) for at in places], np.int32).T

    # ------------------------------------------------ the end

    def close(self, then: Callable[[], None] = lambda: None) -> None:
        """Free it, and call `then`, as soon as nobody uses it: now, or in the last user's thread."""

        def free() -> None:
            mtmd.mtmd_free(self.pointer)
            self.pointer = None
            then()

        self.gate.close(free)


class Encoder:
    """Encodes one medium at a time, beside the worker, which goes on with the others' texts meanwhile.

    In a thread that ends with it: libgomp keeps a team of threads for each that has called it, and as soon
    as those are more than the cores, decoding slows down. It is no daemon: inside a native library while the
    interpreter goes it would crash the process.
    """

    def __init__(self, projector: NativeProjector, wake: Callable[[], None]) -> None:
        self.projector = projector
        self.busy = False
        self._wake = wake

    def start(self, medium: Medium) -> None:
        """Encode it, and wake the worker then; while not `busy`."""

        def run() -> None:
            self.projector.encode(medium)
            self.busy = False
            self._wake()

        self.busy = True
        try:
            threading.Thread(target=run, name="inference-bridge-see").start()
        except RuntimeError as error:  # too many threads, or the interpreter is going
            medium.error = GenerationError(f"an image can't be encoded: {error}")
            self.busy = False
