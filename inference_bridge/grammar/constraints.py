# SPDX-License-Identifier: Apache-2.0
"""The constraints `regex`, `choices` and `grammar` as terms in llguidance's Lark dialect."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache

from ..errors import UnsupportedError
from .patterns import regexes
from .schema_parts import is_text

MAX_REGEX = 10_000
"""Maximum length of a regex, in characters."""

MAX_CHOICES = 10_000

MAX_GRAMMAR = 100_000
"""Maximum length of a Lark grammar, in characters."""


@lru_cache(maxsize=64)
def regex_term(pattern: str, backend: str) -> str:
    """Return the Lark term for a text that matches `pattern` as a whole.

    Args:
        pattern: A regular expression with the syntax of JSON Schema's `pattern`.
        backend: The backend's name, for errors.

    Raises:
        ValueError: `pattern` is not a regular expression, or is too long.
        UnsupportedError: `pattern` can't be enforced, such as one with backreferences.
    """
    if len(pattern) > MAX_REGEX:
        raise ValueError(f"regex has {len(pattern)} characters: at most {MAX_REGEX} are supported")
    if not is_text(pattern):
        raise ValueError(f"regex {pattern!r} is not valid Unicode text")
    try:
        whole, *also = regexes(pattern)
    except (ValueError, RecursionError) as error:
        raise UnsupportedError(f"regex {pattern!r}", backend, str(error)) from None
    term = " & ".join([_slashed(_bare(whole)), *(_slashed(_anywhere(part)) for part in also)])
    why = _problem(f"start: T\nT: {term}")
    if "look-around" in why or "backreferences" in why:
        raise UnsupportedError(f"regex {pattern!r}", backend, why)
    if why:
        raise ValueError(f"regex {pattern!r} can't be used: {why}")
    return term


def _bare(pattern: str) -> str:
    """Remove the anchors at the ends, which are redundant if the whole text must match."""
    start = pattern.startswith("^")
    end = pattern.endswith("$") and not re.search(r"(?:^|[^\\])(?:\\\\)*\\\$$", pattern)
    return pattern[start : len(pattern) - end]


def _anywhere(pattern: str) -> str:
    """Return an expression that matches a whole text if `pattern` matches anywhere in it."""
    bare = _bare(pattern)
    before = "" if pattern.startswith("^") else r"[\s\S]*"
    return f"{before}(?:{bare})" + ("" if bare != pattern[pattern.startswith("^") :] else r"[\s\S]*")


_ASCII = {r"\d": "0-9", r"\w": "a-zA-Z0-9_"}


def _slashed(pattern: str) -> str:
    """Return the expression as a Lark terminal. \\d and \\w match ASCII characters only, as in ECMA-262."""
    inside = False

    def write(found: re.Match[str]) -> str:
        nonlocal inside
        text = found[0]
        if text in "[]":
            inside = text == "["
        if text in _ASCII:
            return _ASCII[text] if inside else f"[{_ASCII[text]}]"
        return "\\/" if text == "/" else text

    escaped = re.sub(r"\\.|[/\[\]]", write, pattern, flags=re.DOTALL)
    return "/(?:" + escaped.replace("\n", "\\n") + ")/"


def choices_term(choices: Sequence[str]) -> str:
    """Return the Lark term for a text that is one of `choices`.

    Raises:
        ValueError: There are too many choices, or a choice is not valid Unicode text.
    """
    if len(choices) > MAX_CHOICES:
        raise ValueError(f"choices has {len(choices)} texts: at most {MAX_CHOICES} are supported")
    for text in choices:
        if not is_text(text):
            raise ValueError(f"choices has {text!r}, which is not valid Unicode text")
    # llguidance rejects a string literal that contains the character DEL itself.
    return " | ".join(
        json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f") for text in dict.fromkeys(choices)
    )


@lru_cache(maxsize=64)
def lark_text(grammar: str) -> str:
    """Check a caller's Lark grammar and return it unchanged.

    Raises:
        ValueError: The grammar is too long, is not valid Unicode text, or does not compile.
    """
    if len(grammar) > MAX_GRAMMAR:
        raise ValueError(f"grammar has {len(grammar)} characters: at most {MAX_GRAMMAR} are supported")
    if not is_text(grammar):
        raise ValueError("grammar is not valid Unicode text")
    if why := _problem(grammar):
        raise ValueError(f"grammar does not compile: {why}")
    return grammar


def _problem(lark: str) -> str:
    """Return llguidance's error for a grammar; "" if the grammar compiles."""
    from llguidance import LLMatcher

    failed, messages = LLMatcher.validate_grammar_with_warnings(lark)
    if not failed:
        return ""
    lines = messages[0].splitlines()
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[0]).removeprefix("error: ")
