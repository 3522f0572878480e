# SPDX-License-Identifier: Apache-2.0
"""The `pattern`s of JSON Schema, as regular expressions that llguidance takes."""

from __future__ import annotations

# What Python counts as a word's characters and as digits: more than ECMA-262 does.
_WORD = r"\p{Alphabetic}\p{M}\p{N}\p{Pc}"
_DIGIT = r"\p{Nd}"

# pydantic's of a Decimal, which looks ahead, and what it comes down to.
_EQUIVALENT = {r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?(?:\d+\.?\d*|\.\d+)$"}

_NUL = ("\\x00", "\\u0000", "\\0", "\x00")


def regex(pattern: str) -> str:
    """A pattern of ECMA-262 as llguidance takes it. Raises ValueError for what it would read otherwise.

    Its expressions are those of Rust, where brackets nest and have operators. Negated
    classes stand for what is in neither ECMA-262's idea of a class nor Python's.

    A class never contains NUL, which no output has anyway: llguidance 1.9 takes one with
    all control characters for one that has the quote and the backslash too.
    """
    pattern = _EQUIVALENT.get(pattern, pattern)
    out: list[str] = []
    inside = negated = False
    at = 0
    while at < len(pattern):
        char = pattern[at]
        piece = pattern[at : at + 2] if char == "\\" else char
        if inside:
            piece = next((nul for nul in _NUL if pattern.startswith(nul, at)), piece)
        at += len(piece)
        if piece == "\\":
            raise ValueError("it ends in a backslash")
        if not inside:
            if piece == "[":
                inside, negated = True, pattern.startswith("^", at)
                at += negated
                piece = "[^\\x00" if negated else "["
                if pattern.startswith("]", at):
                    raise ValueError("a class of characters is empty")
                if negated and pattern.startswith("-", at):
                    piece, at = piece + "\\-", at + 1
            elif piece in ("\\W", "\\D"):
                piece = f"[^\\x00{_WORD if piece == chr(92) + 'W' else _DIGIT}]"
            elif piece in "*+?{" and out and out[-1] in ("^", "$", "\\b", "\\B"):
                raise ValueError(f"there is nothing that {piece!r} could repeat")
        elif piece == "]":
            inside = False
        elif piece in "[&~":
            piece = "\\" + piece
        elif piece == "-" and pattern.startswith("-", at):
            raise ValueError("'--' in a class of characters: escape it")
        elif piece in _NUL:
            piece = "" if negated else "\\x01"
        elif piece in ("\\W", "\\D") and not negated:
            piece = f"[^\\x00{_WORD if piece == chr(92) + 'W' else _DIGIT}]"
        elif negated and piece in ("\\w", "\\d"):
            piece = _WORD if piece == "\\w" else _DIGIT
        out.append(piece)
    if inside:
        raise ValueError("a class of characters is not closed")
    return "".join(out)
