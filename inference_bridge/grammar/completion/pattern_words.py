# SPDX-License-Identifier: Apache-2.0
"""Finds the literal parts of the patterns in a grammar, which a text may have to contain."""

from __future__ import annotations

import json
import re

MAX_WORDS = 48
"""Maximum number of words for a grammar."""

_JSON_PATTERN = re.compile(r'"pattern": ?("(?:[^"\\]|\\.)*")')
_LARK_PATTERN = re.compile(r"/((?:[^/\\\n]|\\.)+)/")
_LARK_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_PIECE = re.compile(
    r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[pP]\{[^}]*\}|.)|\[\^?\]?(?:[^\]\\]|\\.)*\]|\(\?[:=!<a-z-]*|\{[0-9,]*\}|.",
    re.DOTALL,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}


def pattern_words(grammar: str) -> list[str]:
    """Return the runs of literal characters in a grammar's patterns, and a character of each class, longest first.

    These words are only candidates: the matcher decides which of them may come next. Words from the patterns of a JSON
    Schema are escaped as in JSON strings.
    """
    words: dict[str, None] = {}
    for found in _JSON_PATTERN.finditer(grammar):
        words |= dict.fromkeys(json.dumps(word, ensure_ascii=False)[1:-1] for word in _runs(json.loads(found[1])))
    if "%json" not in grammar:
        text = grammar
        if grammar.startswith("{"):
            text = "\n".join(str(part.get("lark_grammar", "")) for part in json.loads(grammar)["grammars"])
        for found in _LARK_PATTERN.finditer(text):
            words |= dict.fromkeys(_runs(found[1]))
        for found in _LARK_STRING.finditer(text):
            words |= dict.fromkeys([_unescaped(found[0])])
    return sorted((word for word in words if 0 < len(word) <= 64), key=lambda word: -len(word))[:MAX_WORDS]


def _unescaped(literal: str) -> str:
    """Return the text of a Lark string; "" if its escapes are not those of JSON."""
    try:
        return str(json.loads(literal))
    except ValueError:
        return ""


def _runs(pattern: str) -> list[str]:
    """Return the runs of literal characters of a pattern, and the first character of each class."""
    runs = [""]
    for piece in _PIECE.findall(pattern):
        if piece.startswith("\\") and len(piece) == 2 and not piece[1].isalnum():
            runs[-1] += piece[1]
        elif piece.startswith("\\") and piece[1:] in _ESCAPES:
            runs[-1] += _ESCAPES[piece[1:]]
        elif piece.startswith("[") and len(piece) > 2 and piece[1] not in "^\\[":
            runs += [piece[1], ""]
        elif len(piece) == 1 and piece not in "()|.*+?^$[\\":
            runs[-1] += piece
        elif piece not in ("^", "$"):
            runs.append("")
    return runs
