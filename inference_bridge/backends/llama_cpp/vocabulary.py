# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of a GGUF model for constrained decoding."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from ...grammar.grammar import Vocabulary
from .library import lib
from .weights import NativeModel

if TYPE_CHECKING:
    from llguidance import LLTokenizer


def vocabulary(model: NativeModel) -> Vocabulary:
    """Return the vocabulary of `model`. The model is not freed while a grammar is compiled."""
    return Vocabulary(lambda: _tokenizer(model), model.gate)


def _tokenizer(model: NativeModel) -> LLTokenizer:
    from llguidance import LLTokenizer

    # A token without text is special. llguidance recognises special tokens by the byte 0xFF before the name.
    tokens = [model.piece(token, False) or b"\xff" + model.piece(token, True) for token in range(model.vocab_size)]
    ends = [token for token in range(model.vocab_size) if model.is_end(token)]
    if not ends:  # llguidance needs one: this one has an id that the model can't choose
        ends = [len(tokens)]
        tokens.append(b"\xff<end>")
    function = ctypes.cast(lib._lib.llama_tokenize, ctypes.c_void_p).value
    tokenizer: LLTokenizer = LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
        tokens=tokens, vocab_ptr=model.vocab, tokenize_fptr=function, eos_token=ends, slices=[]
    )
    # In two calls, because each call holds the interpreter's lock.
    return tokenizer.with_slices(LLTokenizer.general_slices())
