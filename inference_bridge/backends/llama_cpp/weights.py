# SPDX-License-Identifier: Apache-2.0
"""The weights and the vocabulary of a model that llama.cpp has read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

from ..._concurrency.gate import Gate
from ...authoring.loads import load_progress
from ...engine.special_tokens import Shield, no_check
from ...errors import ModelLoadError
from .devices import place
from .library import attempt, last_of, lib, set_fields, start, watch_load
from .placement import Placement
from .tokenizer import NativeTokenizer


class NativeModel:
    """The weights and the vocabulary of a model.

    The vocabulary is thread-safe. After `close` its methods raise ModelClosedError.
    """

    def __init__(
        self,
        path: str,
        placement: Placement,
        *,
        extra: Mapping[str, Any],
        taken: set[str],
        stop: threading.Event | None = None,
    ) -> None:
        """Load the file. Don't call this in the main thread, where Ctrl-C would have to wait for it.

        Args:
            path: The GGUF file.
            placement: Devices and formats of the weights.
            extra: Parameters of llama.cpp, set directly.
            taken: The names in `extra` that were used are added to it.
            stop: Ends the load, with ModelLoadError, when it is set.

        Raises:
            ModelLoadError: llama.cpp can't load the file.
            UnsupportedError: An option for GPUs can't be honoured.
            TypeError: A value in `extra` has the wrong type.
        """
        start()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0x7FFFFFFF if placement.gpu_layers < 0 else placement.gpu_layers
        kept = place(params, placement)
        # With repacked weights a single token is computed differently than several tokens: see docs/engine.md.
        params.use_extra_bufts = not placement.deterministic
        set_fields(params, extra, taken)
        watch_load(params, partial(load_progress.report, path), stop)
        pointer, reasons = attempt(lambda: lib.llama_model_load_from_file(os.fsencode(path), params))
        del kept
        load_progress.report(path, 1)
        if not pointer:
            raise ModelLoadError(f"llama.cpp can't load {path}: {last_of(reasons)}")
        self.pointer = pointer
        self.path = path
        self.gate = Gate()
        """Every use of the model outside the worker enters this gate, so that it is not freed while it is used."""
        self.vocab = lib.llama_model_get_vocab(pointer)
        self.tokenizer = tokenizer = NativeTokenizer(self.vocab, self.gate)
        self.vocab_size, self.bos, self.eos = tokenizer.size, tokenizer.bos, tokenizer.eos
        self.is_end, self.piece, self.text_of = tokenizer.is_end, tokenizer.piece, tokenizer.text_of
        self.window = int(lib.llama_model_n_swa(pointer))
        self.recurrent = bool(lib.llama_model_is_recurrent(pointer) or lib.llama_model_is_hybrid(pointer))
        self.has_decoder = bool(lib.llama_model_has_decoder(pointer)) and not lib.llama_model_has_encoder(pointer)

    def __contains__(self, text: object) -> bool:
        """Return whether `text` is exactly one token, possibly a special one."""
        return isinstance(text, str) and self.tokenizer.contains(text)

    def encode(self, text: str, *, special: bool, check: Callable[[], None] = no_check) -> list[int]:
        """Return the token ids. `special`: add BOS and EOS if the model expects them, and parse special tokens."""
        return self.tokenizer.encode(text, add_special=special, parse_special=special, check=check)

    def encode_rendered(self, text: str, mark: str = "", check: Callable[[], None] = no_check) -> list[int]:
        """Return the token ids of a rendered chat. BOS is not added if the template wrote it, as in llama-server."""
        add = not self.begins_with_bos(text)
        return self.tokenizer.encode(text, add_special=add, parse_special=True, mark=mark, check=check)

    def begins_with_bos(self, text: str) -> bool:
        """Return whether the text begins with the name of the BOS token."""
        return self.bos is not None and text.startswith(self.text_of(self.bos))

    def fewest(self, text: str) -> int:
        """Return a lower bound of the number of tokens, computed from the length of the text."""
        return self.tokenizer.fewest(text)

    @cached_property
    def shield(self) -> Shield:
        """Prevents text of users from becoming special tokens."""
        return Shield(self.tokenizer.control_names)

    def close(self) -> None:
        """Free the model as soon as no thread uses it. Idempotent."""
        self.gate.close(self._free)

    def _free(self) -> None:
        lib.llama_model_free(self.pointer)
        self.pointer = None
