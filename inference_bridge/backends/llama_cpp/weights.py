# SPDX-License-Identifier: Apache-2.0
"""A model as llama.cpp has read it: its weights and its vocabulary."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import ModelLoadError
from .flag import ALWAYS, Flag
from .library import attempt, last_of, lib, set_fields, start


class NativeModel:
    """The weights and the vocabulary. Tokenizing is safe from any thread."""

    def __init__(
        self,
        path: str,
        *,
        gpu_layers: int,
        deterministic: bool,
        extra: Mapping[str, Any],
        taken: set[str],
        wanted: Flag = ALWAYS,
        begins: Callable[[], None] = lambda: None,
    ) -> None:
        """Load the file, unless `wanted` goes down meanwhile. In the main thread Ctrl-C would have to wait for it.

        `begins` is called where llama.cpp begins, and the interpreter is free.
        """
        start()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0x7FFFFFFF if gpu_layers < 0 else gpu_layers
        # Repacked weights compute a token differently alone and among others: see docs/engine.md.
        params.use_extra_bufts = not deterministic
        set_fields(params, extra, taken)
        wanted.answers(params, "progress_callback", "progress_callback_user_data")

        def read() -> Any:
            begins()
            return lib.llama_model_load_from_file(os.fsencode(path), params)

        pointer, reasons = attempt(read, wanted)
        if not pointer:
            raise ModelLoadError(f"llama.cpp can't load {path}: {last_of(reasons)}")
        self.pointer = pointer
        self.path = path
        self.vocab = lib.llama_model_get_vocab(pointer)
        self.vocab_size = int(lib.llama_vocab_n_tokens(self.vocab))
        self.bos = _token(lib.llama_vocab_bos(self.vocab))
        self.eos = _token(lib.llama_vocab_eos(self.vocab))
        self.window = int(lib.llama_model_n_swa(pointer))
        self.recurrent = bool(lib.llama_model_is_recurrent(pointer) or lib.llama_model_is_hybrid(pointer))
        self.has_decoder = bool(lib.llama_model_has_decoder(pointer)) and not lib.llama_model_has_encoder(pointer)
        self._ends: dict[int, bool] = {}
        self._pieces: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})

    def is_end(self, token: int) -> bool:
        """Whether the model ends its text, or its turn, with this token."""
        known = self._ends.get(token)
        if known is None:
            known = self._ends[token] = bool(lib.llama_vocab_is_eog(self.vocab, token))
        return known

    def __contains__(self, text: object) -> bool:
        """Whether `text` is a token by itself, a special one perhaps."""
        ids = self.tokenize(text, add_special=False, parse_special=True) if isinstance(text, str) else []
        return len(ids) == 1 and self.text_of(ids[0]) == text

    def text_of(self, token: int | None) -> str:
        return "" if token is None else self.piece(token, True).decode("utf-8", "replace")

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids; `special`: add BOS and its like as the model wants, and read names of special tokens."""
        return self.tokenize(text, add_special=special, parse_special=special)

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a rendered chat; a template that wrote BOS itself gets no second one, as in llama-server."""
        return self.tokenize(text, add_special=not self.begins_with_bos(text), parse_special=True)

    def begins_with_bos(self, text: str) -> bool:
        return self.bos is not None and text.startswith(self.text_of(self.bos))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", "surrogatepass")
        room = len(data) + 8
        while True:
            ids = (lib.llama_token * room)()
            count = lib.llama_tokenize(self.vocab, data, len(data), ids, room, add_special, parse_special)
            if count >= 0:
                return list(ids[:count])
            if count == -(2**31):
                raise ValueError("the text is too long to tokenize")
            room = -count

    def piece(self, token: int, special: bool) -> bytes:
        """The bytes of a token; `special`: those of special tokens too, which have none otherwise."""
        known = self._pieces[special]
        piece = known.get(token)
        if piece is None:
            room = 64
            while True:
                buffer = ctypes.create_string_buffer(room)
                count = lib.llama_token_to_piece(self.vocab, token, buffer, room, 0, special)
                if count >= 0:
                    break
                room = -count
            piece = known[token] = buffer.raw[:count]
        return piece

    def close(self) -> None:
        if self.pointer:
            lib.llama_model_free(self.pointer)
            self.pointer = None


def _token(value: int) -> int | None:
    return None if value < 0 else int(value)
