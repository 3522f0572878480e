# SPDX-License-Identifier: Apache-2.0
"""Safe access to libmtmd: a projector splits images and sounds into chunks, and encodes these as embeddings.

libmtmd would run ffprobe from PATH for a file that it can't read. Here its search path for ffprobe is a directory that
does not exist.
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

_NO_FFMPEG = b"/nonexistent"
"""The directory in which libmtmd looks for ffmpeg and ffprobe."""


class Medium:
    """One image, one slice of an image, or half a minute of a sound, in a prompt.

    Attributes:
        chunk: libmtmd's chunk; None after `done`.
        tokens: How many cells of the context's memory it fills.
        positions: How far it advances the position of the next token. Less than `tokens` if positions have two
            dimensions.
        key: A negative number that stands for each of its tokens in a list of token ids. Only the same part of the same
            file has the same key.
        causal: Whether each of its tokens attends only to those before it. If not, all are evaluated in one batch.
        rows: Its embeddings, float32 [tokens, width]; None before it is encoded.
        error: Why it can't be encoded, or None.
        seconds: How long encoding took.
    """

    def __init__(self, chunk: Any, *, place: int, causal: bool) -> None:
        self.chunk: Any = None
        self.tokens = int(mtmd.mtmd_input_chunk_get_n_tokens(chunk))
        self.positions = int(mtmd.mtmd_input_chunk_get_n_pos(chunk))
        self.causal = causal
        # Slices of one file share the file's id, a SHA-256 of its content, so the key includes their place.
        name = mtmd.mtmd_input_chunk_get_id(chunk) or b""
        digest = hashlib.sha256(b"%s %d %d" % (name, place, self.tokens)).digest()
        self.key = -1 - int.from_bytes(digest[:16], "little")
        self.rows: Any = None
        self.error: GenerationError | None = None
        self.seconds = 0.0
        self.chunk = mtmd.mtmd_input_chunk_copy(chunk)

    def done(self) -> None:
        """Free the embeddings and the chunk, once the context's memory has them. Idempotent."""
        self.rows = None
        if self.chunk:
            mtmd.mtmd_input_chunk_free(self.chunk)
            self.chunk = None

    def __del__(self) -> None:
        self.done()


class NativeProjector:
    """A loaded projector. `cut` may be called from any thread, `encode` by one thread at a time."""

    def __init__(
        self, path: str, model: NativeModel, *, threads: int, use_gpu: bool, stop: threading.Event | None = None
    ) -> None:
        """Load the file.

        Args:
            path: The GGUF file of the projector.
            model: The model that its embeddings are for.
            threads: Number of threads that encode on the CPU.
            use_gpu: Whether to encode on the GPU.
            stop: Ends the load, with ModelLoadError, when it is set.

        Raises:
            ModelLoadError: libmtmd can't load it.
        """
        log_to_logging(mtmd.mtmd_helper_log_set)  # libmtmd's helper has a separate log, which goes to stderr
        params = mtmd.mtmd_context_params_default()
        params.use_gpu = use_gpu
        params.print_timings = params.warmup = False
        params.n_threads = threads
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_AUTO if use_gpu else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        watch_load(params, lambda _: None, stop)
        # A prompt may contain libmtmd's usual marker as text, which would then count as an image.
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
        self._options.video_params.ffmpeg_bin_dir = _NO_FFMPEG
        self.gate = Gate()

    # ------------------------------------------------ from a prompt to its pieces

    def cut(self, medium: tuple[str, bytes], what: str) -> list[list[int] | Medium]:
        """Return what an image or a sound becomes in a prompt.

        Args:
            medium: "image" or "audio", and the content of the file.
            what: Identifies it in errors, as in "2 of 3".

        Returns:
            Lists of token ids, and media, in their order.

        Raises:
            GenerationError: The file can't be read.
            ModelClosedError: The projector is closed.
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
        with complaints():  # not quoted: the last one is about ffprobe, which is not found
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
        """Compute the embeddings of `medium`. Sets its `rows` or `error`, and `seconds`.

        This takes seconds for a large image on a CPU, and can't be interrupted.
        """
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
        """Return the positions of the tokens of `medium`.

        Args:
            medium: The medium, before `done`.
            first: The position of its first token.

        Returns:
            int32 [1, tokens], or [4, tokens] if the model's positions have dimensions (M-RoPE).
        """
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
        """Free the projector and call `then`, once no thread uses it: now, or in the last thread that leaves."""

        def free() -> None:
            mtmd.mtmd_free(self.pointer)
            self.pointer = None
            then()

        self.gate.close(free)


class Encoder:
    """Encodes one medium at a time in another thread, so that the worker can decode other sequences meanwhile.

    Each medium gets a thread that ends afterwards, because libgomp keeps a team of threads for every thread that has
    called it, and decoding slows down when those are more than the cores. The thread is not a daemon: a daemon thread
    inside a native library crashes the process when the interpreter ends.

    Attributes:
        projector: The projector.
        busy: Whether a medium is being encoded.
    """

    def __init__(self, projector: NativeProjector, wake: Callable[[], None]) -> None:
        self.projector = projector
        self.busy = False
        self._wake = wake

    def start(self, medium: Medium) -> None:
        """Start to encode `medium`, and wake the worker at the end. Call it only while not `busy`."""

        def run() -> None:
            self.projector.encode(medium)
            self.busy = False
            self._wake()

        self.busy = True
        try:
            threading.Thread(target=run, name="inference-bridge-see").start()
        except RuntimeError as error:  # there are too many threads, or the interpreter is shutting down
            medium.error = GenerationError(f"an image can't be encoded: {error}")
            self.busy = False
