# SPDX-License-Identifier: Apache-2.0
"""Fill in the middle: models with special tokens for it generate the text between a prefix and a suffix.

The prompt is the same as for /infill of llama-server: BOS if the model expects one, then the prefix and the suffix,
each after its token, then the token of the middle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

FILL_NAMES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<PRE>", "<SUF>", "<MID>"),
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
)
"""The names of the three tokens in each model family, from src/llama-vocab.cpp of llama.cpp's repository."""


class Tokenizer(Protocol):
    """The part of `engine.model.Tokenizer` that is needed here."""

    def encode(self, text: str, *, special: bool, check: Callable[[], None] = ...) -> list[int]: ...
    def __contains__(self, text: object) -> bool: ...


@dataclass(frozen=True, slots=True)
class Infill:
    """The texts before and after the one to generate."""

    prefix: str
    suffix: str


def fill_names(tokenizer: Tokenizer) -> tuple[str, str, str] | None:
    """Return the names of a model's tokens for prefix, suffix and middle; None if it has none."""
    return next((names for names in FILL_NAMES if all(name in tokenizer for name in names)), None)


def infill_tokens(
    tokenizer: Tokenizer, infill: Infill, markup: Callable[[str], list[int]], check: Callable[[], None]
) -> list[int]:
    """Return the token ids of the prompt. Names of special tokens in the texts are text.

    Args:
        tokenizer: The model's tokenizer, which has the tokens.
        infill: The texts.
        markup: Returns the token ids of a special token's name.
        check: Called between two parts of the work. It may raise to abort it.
    """
    names = fill_names(tokenizer)
    assert names is not None
    before, behind, middle = map(markup, names)
    around = tokenizer.encode("", special=True)[:1]  # BOS
    texts = [tokenizer.encode(text, special=False, check=check) for text in (infill.prefix, infill.suffix)]
    return [*around, *before, *texts[0], *behind, *texts[1], *middle]
