# SPDX-License-Identifier: Apache-2.0
"""Grammars in GBNF, the notation that every llama-server reads (grammars/README.md in llama.cpp's repository)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ....errors import UnsupportedError
from ....grammar.constraints import choices_term


def choices_grammar(choices: Sequence[str]) -> str:
    """Return a grammar that matches exactly one of `choices`.

    Choices with the same beginning share a rule for the rest. With a plain list of alternatives, the server would try
    each of them for each token: a thousand choices would take 20 times as long.

    Args:
        choices: The texts, at least one, which `check_choices` has checked.
    """
    rules: list[list[str]] = [[]]
    work = [(0, sorted(set(choices)), 0)]
    while work:
        rule, texts, at = work.pop()  # the texts have `at` characters in common
        for following, group in groupby(texts, key=lambda text: text[at : at + 1]):
            alike = list(group)
            if not following or len(alike) == 1:
                rules[rule].append(_literal(alike[0][at:]))
                continue
            common = _common_length(alike[0], alike[-1])
            rules[rule].append(f"{_literal(alike[0][at:common])} r{len(rules)}")
            work.append((len(rules), alike, common))
            rules.append([])
    lines = [f"r{index} ::= {' | '.join(alternatives)}" for index, alternatives in enumerate(rules)]
    return "\n".join(["root ::= r0", *lines])


def check_choices(choices: Sequence[str], backend: str) -> None:
    """Raise ValueError or UnsupportedError if a grammar can't hold an answer to `choices`."""
    choices_term(choices)
    if any("\0" in text for text in choices):
        raise UnsupportedError("choices with a NUL character", backend, "llama-server's grammars can't have one")


def _common_length(one: str, other: str) -> int:
    """Return the length of the common beginning of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (here, there) in pairs if here != there), min(len(one), len(other)))


def _literal(text: str) -> str:
    plain = (char if " " <= char <= "~" and char not in '"\\' else f"\\U{ord(char):08X}" for char in text)
    return f'"{"".join(plain)}"'
