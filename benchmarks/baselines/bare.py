# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's C interface called in a loop, with as little Python as possible.

It decodes greedily, in one thread, sequences that begin and end together. It has no queue, streams, stop strings or
cancellation. The engine is compared with it.
"""

from __future__ import annotations

import codecs
import ctypes
import os
from collections.abc import Sequence
from typing import Any

import llama_cpp as lib
import numpy as np

BATCH_SIZE = 512


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _silence(level: int, text: bytes, _: object) -> None:
    pass


class BareLoop:
    """A model, and a context with the same parameters as the llama_cpp backend's (see NativeContext)."""

    def __init__(self, path: str, *, sequences: int, length: int, threads: int, deterministic: bool = False) -> None:
        lib.llama_log_set(_silence, ctypes.c_void_p(0))
        lib.llama_backend_init()
        model_params = lib.llama_model_default_params()
        model_params.use_extra_bufts = not deterministic
        self._model = lib.llama_model_load_from_file(os.fsencode(path), model_params)
        params = lib.llama_context_default_params()
        params.n_ctx = sequences * length
        params.n_batch = params.n_ubatch = BATCH_SIZE
        params.n_seq_max = params.n_outputs_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = False
        params.swa_full = True
        params.no_perf = True
        if deterministic:
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._model or not self._context:
            raise RuntimeError(f"llama.cpp can't load {path}")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._vocab_size = lib.llama_vocab_n_tokens(self._vocab)
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(BATCH_SIZE, 0, 1)
        self._pieces: dict[int, bytes] = {}

    def generate(self, prompts: Sequence[str], count: int) -> tuple[list[list[int]], list[str]]:
        """Return the ids and the texts of `count` tokens after each prompt, even if the model ends the text.

        Each prompt is evaluated in a separate call, as in the engine; then all sequences are decoded together.
        """
        batch = self._batch
        token, position, output = batch.token, batch.pos, batch.logits
        lib.llama_memory_clear(self._memory, True)
        chosen, lengths = [], []
        for sequence, prompt in enumerate(prompts):
            ids = self._tokenize(prompt)
            for place, id in enumerate(ids):
                token[place], position[place], output[place] = id, place, False
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            output[len(ids) - 1] = True
            batch.n_tokens = len(ids)
            chosen.append(int(self._decode(1)[0].argmax()))
            lengths.append(len(ids))

        width = len(prompts)
        for row in range(width):
            batch.n_seq_id[row], batch.seq_id[row][0], output[row] = 1, row, True
        batch.n_tokens = width
        decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(width)]
        ids_of = [[id] for id in chosen]
        texts = [[decoder.decode(self._piece(id))] for decoder, id in zip(decoders, chosen, strict=True)]
        for step in range(count - 1):
            for row in range(width):
                token[row], position[row] = chosen[row], lengths[row] + step
            logits = self._decode(width)
            chosen = [int(logits[row].argmax()) for row in range(width)]
            for row, id in enumerate(chosen):
                ids_of[row].append(id)
                texts[row].append(decoders[row].decode(self._piece(id)))
        return ids_of, ["".join(pieces) for pieces in texts]

    def _decode(self, outputs: int) -> Any:
        """Evaluate the batch. Return the logits [outputs, vocab_size]."""
        code = lib.llama_decode(self._context, self._batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        address = ctypes.addressof(lib.llama_get_logits(self._context).contents)
        buffer = (ctypes.c_float * (outputs * self._vocab_size)).from_address(address)
        return np.frombuffer(buffer, np.float32).reshape(outputs, -1)

    def _tokenize(self, text: str) -> list[int]:
        data = text.encode()
        ids = (lib.llama_token * (len(data) + 8))()
        count = lib.llama_tokenize(self._vocab, data, len(data), ids, len(ids), True, True)
        return ids[:count]

    def _piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            buffer = ctypes.create_string_buffer(256)
            count = lib.llama_token_to_piece(self._vocab, token, buffer, 256, 0, False)
            piece = self._pieces[token] = buffer.raw[:count]
        return piece

    def close(self) -> None:
        lib.llama_batch_free(self._batch)
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)
