# SPDX-License-Identifier: Apache-2.0
"""A model as llama.cpp has read it: its weights and its vocabulary."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from ..._concurrency.gate import Gate
from ...engine.special_tokens import Shield
from ...errors import ModelLoadError
from .devices import place
from .flag import ALWAYS, Flag
from .library import attempt, last_of, lib, set_fields, start
from .placement import Placement
from .tokenizer import NativeTokenizer, nothing


class NativeModel:
    """The weights, and the vocabulary, which any thread may use: closed, it raises ModelClosedError."""

    def __init__(
        self,
        path: str,
        placement: Placement,
        *,
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
        params.n_gpu_layers = 0x7FFFFFFF if placement.gpu_layers < 0 else placement.gpu_layers
        kept = place(params, placement)
        # Repacked weights compute a token differently alone and among others: see docs/engine.md.
        params.use_extra_bufts = not placement.deterministic
        set_fields(params, extra, taken)
        wanted.answers(params, "progress_callback", "progress_callback_user_data")

        def read() -> Any:
            begins()
            return lib.llama_model_load_from_file(os.fsencode(path), params)

        pointer, reasons = attempt(read, wanted)
        del kept
        if not pointer:
            raise ModelLoadError(f"llama.cpp can't load {path}: {last_of(reasons)}")
        self.pointer = pointer
        self.path = path
        self.gate = Gate()
        """Through which every use of the model from other threads than the worker's passes, and its freeing."""
        self.vocab = lib.llama_model_get_vocab(pointer)
        self.tokenizer = tokenizer = NativeTokenizer(self.vocab, self.gate)
        self.vocab_size, self.bos, self.eos = tokenizer.size, tokenizer.bos, tokenizer.eos
        self.is_end, self.piece, self.text_of = tokenizer.is_end, tokenizer.piece, tokenizer.text_of
        self.window = int(lib.llama_model_n_swa(pointer))
        self.recurrent = bool(lib.llama_model_is_recurrent(pointer) or lib.llama_model_is_hybrid(pointer))
        self.has_decoder = bool(lib.llama_model_has_decoder(pointer)) and not lib.llama_model_has_encoder(pointer)

    def __contains__(self, text: object) -> bool:
        """Whether `text` is a token by itself, a special one perhaps."""
        return isinstance(text, str) and self.tokenizer.contains(text)

    def encode(self, text: str, *, special: bool, check: Callable[[], None] = nothing) -> list[int]:
        """Token ids; `special`: add BOS and its like as the model wants, and read names of special tokens."""
        return self.tokenizer.encode(text, add_special=special, parse_special=special, check=check)

    def encode_rendered(self, text: str, mark: str = "", check: Callable[[], None] = nothing) -> list[int]:
        """Token ids of a rendered chat; a template that wrote BOS itself gets no second one, as in llama-server."""
        add = not self.begins_with_bos(text)
        return self.tokenizer.encode(text, add_special=add, parse_special=True, mark=mark, check=check)

    def begins_with_bos(self, text: str) -> bool:
        return self.bos is not None and text.startswith(self.text_of(self.bos))

    def fewest(self, text: str) -> int:
        """How many tokens the text has at least, as its length alone tells."""
        return self.tokenizer.fewest(text)

    @cached_property
    def shield(self) -> Shield:
        """What keeps users from writing special tokens."""
        return Shield(self.tokenizer.control_names)

    def close(self) -> None:
        """Free it as soon as no thread uses it. Idempotent."""
        self.gate.close(self._free)

    def _free(self) -> None:
        lib.llama_model_free(self.pointer)
        self.pointer = None
