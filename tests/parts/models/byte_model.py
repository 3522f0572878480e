# SPDX-License-Identifier: Apache-2.0
"""A vocabulary of single bytes, and a model that says anything a grammar lets through."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from inference_bridge.grammar.grammar import Grammar, Vocabulary

END = 256
PADDING = 13
"""The number of logits beyond the tokens, as in models whose vocabulary is rounded up."""


class ByteTokens:
    """Every byte, an end token, `special` tokens, then `more` tokens of several bytes: what llguidance asks for."""

    def __init__(self, special: Sequence[str] = (), more: Sequence[str] = ()) -> None:
        self.texts = [bytes([byte]) for byte in range(256)] + [b"<end>"]
        self.texts += [text.encode() for text in (*special, *more)]
        self.special_token_ids = list(range(END, END + 1 + len(special)))
        self.tokens = [b"\xff" + text if id in self.special_token_ids else text for id, text in enumerate(self.texts)]
        self.eos_token_id = END
        self.bos_token_id = None

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())

    def read(self, tokens: Sequence[int]) -> str:
        return b"".join(self.texts[token] for token in tokens).decode()

    def id(self, text: str) -> int:
        return self.texts.index(text.encode())


def vocabulary(tokens: ByteTokens | None = None) -> Vocabulary:
    tokens = tokens or ByteTokens()
    return Vocabulary(lambda: LLTokenizer(TokenizerWrapper(tokens)))


def allowed(grammar: Grammar, likeliest: int = 0, tokens: ByteTokens | None = None) -> set[int]:
    """The tokens that are allowed next, for a model with the given most likely token."""
    size = len((tokens or ByteTokens()).texts)
    logits: NDArray[np.float32] = np.zeros(size + PADDING, np.float32)
    logits[likeliest] = 1
    grammar.mask(logits)
    assert np.isneginf(logits[size:]).all()
    return {int(token) for token in np.flatnonzero(np.isfinite(logits))}


def feed(grammar: Grammar, text: str | Sequence[int]) -> Grammar:
    """The grammar after the text, or the tokens."""
    for token in text.encode() if isinstance(text, str) else text:
        grammar.accept(token)
    return grammar


def walk(
    grammar: Grammar,
    rng: random.Random,
    tokens: ByteTokens | None = None,
    *,
    limit: int = 300,
    weights: Mapping[int, float] | None = None,
    likeliest: Sequence[int] = (END,),
) -> list[int] | None:
    """What a model that knows nothing says; None if it comes to no end.

    `weights` are chances of tokens, beside 1; `likeliest` those of which one is the model's
    own choice each time.
    """
    tokens = tokens or ByteTokens()
    weight = np.ones(len(tokens.texts) + PADDING)
    weight[0x80:0x100] = 0.3  # else most characters are of several bytes
    for byte in b'"}]':
        weight[byte] = 6
    for byte in b",aeiou 019-.":
        weight[byte] = 3
    weight[END] = 20
    for token, value in (weights or {}).items():
        weight[token] = value
    said: list[int] = []
    for _ in range(limit):
        logits: NDArray[np.float32] = np.zeros(len(weight), np.float32)
        logits[rng.choice(likeliest)] = 1
        grammar.mask(logits)
        chances = np.where(np.isneginf(logits), 0, weight)
        token = rng.choices(range(len(chances)), chances.tolist())[0]
        grammar.accept(token)
        if token == END:
            return said
        said.append(token)
        if grammar.finished:
            return said
    return None


def choose(made: Grammar, logits: NDArray[np.float32]) -> int:
    """Accept and return the token with the highest logit that is allowed and fits, as the engines choose it."""
    made.mask(logits)
    token = int(logits.argmax())
    while not made.fits(token):
        made.exclude(token, logits)
        token = int(logits.argmax())
    made.accept(token)
    return token
