# SPDX-License-Identifier: Apache-2.0
"""A GGUF model's tokens for grammars."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from ...grammar.grammar import Vocabulary
from .library import lib
from .weights import NativeModel

if TYPE_CHECKING:
    from llguidance import LLTokenizer


def vocabulary(model: NativeModel) -> Vocabulary:
    """The tokens of `model`, which is not freed while a grammar is compiled."""
    return Vocabulary(lambda: _tokenizer(model), model.gate)


def _tokenizer(model: NativeModel) -> LLTokenizer:
    from llguidance import LLTokenizer

    # A token without text of its own is special, which llguidance knows by the byte before its name.
    tokens = [model.piece(token, False) or b"\xff" + model.piece(token, True) for token in range(model.vocab_size)]
    ends = [token for token in range(model.vocab_size) if model.is_end(token)]
    if not ends:  # it wants one: this is behind those that the model can choose
        ends = [len(tokens)]
        tokens.append(b"\xff<end>")
    function = ctypes.cast(lib._lib.llama_tokenize, ctypes.c_void_p).value
    tokenizer: LLTokenizer = LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
        tokens=tokens, vocab_ptr=model.vocab, tokenize_fptr=function, eos_token=ends, slices=[]
    )
    # In two calls, since each keeps the interpreter's lock.
    return tokenizer.with_slices(LLTokenizer.general_slices())
