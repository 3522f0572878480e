# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's C interface called in a loop, as little Python around it as can be.

No queue, no streams, no stop strings, no cancelling, nothing but greedy decoding of
sequences that all begin and end together: what the engine is measured against.
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
    """A model and a context with the parameters that the llama_cpp backend uses (see its NativeContext)."""

    def __init__(self, path: str, *, sequences: int, length: int, threads: int) -> None:
        lib.llama_log_set(_silence, ctypes.c_void_p(0))
        lib.llama_backend_init()
        model = lib.llama_model_default_params()
        model.use_extra_bufts = False
        self._model = lib.llama_model_load_from_file(os.fsencode(path), model)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._vocab_size = lib.llama_vocab_n_tokens(self._vocab)
        params = lib.llama_context_default_params()
        params.n_ctx = sequences * length
        params.n_batch = params.n_ubatch = BATCH_SIZE
        params.n_seq_max = params.n_outputs_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = False
        params.swa_full = True
        params.no_perf = True
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = lib.llama_init_from_model(self._model, params)
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(BATCH_SIZE, 0, 1)
        self._pieces: dict[int, bytes] = {}

    def generate(self, prompts: Sequence[str], count: int) -> list[tuple[list[int], str]]:
        """The ids and the text of `count` tokens after each prompt: prompts one by one, then all sequences at once."""
        batch, context = self._batch, self._context
        token, pos, logits = batch.token, batch.pos, batch.logits
        lib.llama_memory_clear(self._memory, True)
        chosen: list[int] = []
        lengths: list[int] = []
        for sequence, prompt in enumerate(prompts):
            ids = self.tokenize(prompt)
            for place, id in enumerate(ids):
                token[place], pos[place], logits[place] = id, place, False
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            logits[len(ids) - 1] = True
            batch.n_tokens = len(ids)
            self._decode()
            chosen.append(int(self._logits(1)[0].argmax()))
            lengths.append(len(ids))
        rows = range(len(prompts))
        for row in rows:
            batch.n_seq_id[row], batch.seq_id[row][0], logits[row] = 1, row, True
        batch.n_tokens = len(prompts)
        out = [[id] for id in chosen]
        decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in rows]
        texts = [[decoder.decode(self.piece(id))] for decoder, id in zip(decoders, chosen, strict=True)]
        for step in range(count - 1):
            for row in rows:
                token[row], pos[row] = chosen[row], lengths[row] + step
            self._decode()
            chosen = self._logits(len(prompts)).argmax(axis=1).tolist()
            for row in rows:
                out[row].append(chosen[row])
                texts[row].append(decoders[row].decode(self.piece(chosen[row])))
        assert context is self._context
        return [(ids, "".join(text)) for ids, text in zip(out, texts, strict=True)]

    def _decode(self) -> None:
        code = lib.llama_decode(self._context, self._batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")

    def _logits(self, rows: int) -> Any:
        size = rows * self._vocab_size
        address = ctypes.cast(lib.llama_get_logits(self._context), ctypes.c_void_p).value
        assert address is not None
        return np.frombuffer((ctypes.c_float * size).from_address(address), np.float32).reshape(rows, -1)

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        ids = (lib.llama_token * (len(data) + 8))()
        count = lib.llama_tokenize(self._vocab, data, len(data), ids, len(ids), True, True)
        return ids[:count]

    def piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            buffer = ctypes.create_string_buffer(64)
            count = lib.llama_token_to_piece(self._vocab, token, buffer, 64, 0, False)
            piece = self._pieces[token] = buffer.raw[:count]
        return piece

    def close(self) -> None:
        lib.llama_batch_free(self._batch)
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)
