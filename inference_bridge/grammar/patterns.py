# SPDX-License-Identifier: Apache-2.0
"""The `pattern`s of JSON Schema (ECMA-262) as regular expressions for llguidance."""

from __future__ import annotations

import re

# Word characters and digits as Python defines them; ECMA-262 has fewer.
_WORD = r"\p{Alphabetic}\p{M}\p{N}\p{Pc}"
_DIGIT = r"\p{Nd}"

# The patterns of Decimal (pydantic) and duration (zod) have lookaround inside; these are equivalent without it.
_SECONDS = r"\d+(?:[.,]\d+)?S"
_TIME = rf"T(?:\d+H(?:\d+M)?(?:{_SECONDS})?|\d+M(?:{_SECONDS})?|{_SECONDS})"
_EQUIVALENT = {
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?(?:\d+\.?\d*|\.\d+)$",
    r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$": (
        rf"^P(?:\d+W|(?:\d+Y(?:\d+M)?(?:\d+D)?|\d+M(?:\d+D)?|\d+D)(?:{_TIME})?|{_TIME})$"
    ),
}

_NUL = ("\\x00", "\\u0000", "\\0", "\x00")


def regexes(pattern: str) -> list[str]:
    """Return expressions that together match only texts that `pattern` matches: all of them, or slightly fewer.

    Lookahead after the first `^` and lookbehind before the last `$` become separate expressions.

    Raises:
        ValueError: `pattern` has other lookaround, or `regex` rejects a part of it.
    """
    pattern = _EQUIVALENT.get(pattern, pattern)
    also: list[str] = []
    if pattern.startswith(("^(?=", "^(?!")):
        body = pattern[1:]
        while body.startswith(("(?=", "(?!")):
            end = _closing(body)
            inside = body[3:end]
            also += _ahead(inside) if body[2] == "=" else _not_ahead(inside)
            body = body[end + 1 :]
            if body[:1] in ("*", "+", "?", "{"):
                raise ValueError("a lookahead can't be repeated")
        pattern = _whole("^" + body)
    behind = re.fullmatch(rf"(.*)\(\?<([=!])({_ONE})\)\$", pattern, re.DOTALL)
    if behind is not None:
        before, sign, one = behind.groups()
        if before.endswith("\\"):
            raise ValueError("the lookbehind can't be distinguished from an escaped bracket")
        pattern = _whole(before + "$")
        also.append(f"{one}$" if sign == "=" else f"(?:^|{_other(one)})$")
    if re.search(r"(?<!\\)\(\?(?:<?[=!])", pattern):
        raise ValueError("lookaround is supported only after the first ^ and before the last $")
    return [regex(part) for part in (pattern, *also)]


# One character: a class, an escape, or itself.
_ONE = r"\[\^?(?:[^\]\\]|\\.)+\]|\\[^bBkpPux0-9]|[^\\\[\](){}*+?.|^$]"


def _whole(pattern: str) -> str:
    """Return the pattern. Raises ValueError if an anchor at its ends applies to only one of several alternatives."""
    depth, at = 0, 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 1
        elif char == "[":
            at = pattern.index("]", at + 2)
            while pattern[at - 1] == "\\":
                at = pattern.index("]", at + 1)
        elif char == "|" and depth == 0:
            raise ValueError("lookaround next to alternatives: put the alternatives in a group")
        depth += (char == "(") - (char == ")")
        at += 1
    return pattern


def _closing(group: str) -> int:
    """Return the position of the bracket that closes the group at the start of the text."""
    depth, at = 0, 0
    while at < len(group):
        char = group[at]
        if char == "\\":
            at += 1
        elif char == "[":
            at = group.find("]", at + 2)
            if at < 0:
                break
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return at
        at += 1
    raise ValueError("a group is not closed")


def _ahead(inside: str) -> list[str]:
    """Return the expressions for a positive lookahead at the beginning. The text must match all of them."""
    return regexes(f"^(?:{inside})") if not inside.startswith("^") else regexes(inside)


def _not_ahead(inside: str) -> list[str]:
    """Return the expressions for a negative lookahead at the beginning, of up to 8 characters, possibly after `.*`."""
    found = re.fullmatch(rf"(\.\*|\[\\s\\S\]\*)?((?:{_ONE}){{1,8}})", inside)
    if found is None:
        raise ValueError(f"the negative lookahead {inside!r} has no equivalent without lookahead")
    ones = re.findall(_ONE, found[2])
    if not found[1]:
        rest = ""
        for one in reversed(ones):
            rest = f"(?:{_other(one)}[\\s\\S]*" + (f"|{one}{rest}" if rest else "") + ")?"
        return [f"^{rest}$"]
    # `.*` stops at the end of a line. These expressions exclude the characters everywhere, so they match fewer texts.
    if len(ones) == 1:
        return [f"^{_other(ones[0])}*$"]
    if len(ones) == 2 and ones[0] == ones[1]:
        return [f"^(?:{_other(ones[0])}|{ones[0]}{_other(ones[0])})*{ones[0]}?$"]
    if len(ones) == 2 and all(len(one.lstrip(chr(92))) == 1 for one in ones):
        a, b = ones
        return [f"^(?:{_other(a)}|{a}+[^{a}{b}])*{a}*$"]
    raise ValueError(f"the negative lookahead {inside!r} has no equivalent without lookahead")


def _other(one: str) -> str:
    """Return a character class of all characters except those of `one`."""
    if one.startswith("[^"):
        return "[" + one[2:]
    if one.startswith("["):
        return "[^" + one[1:]
    return f"[^{one}]"


_ATOM = re.compile(r"\\[pPux]\{[^}]*\}|\\.|\[\^?(?:[^\]\\]|\\.)+\]", re.DOTALL)
_REPEATED_TWICE = re.compile(r"(?<!\()(?:[*+?]|\{[0-9]+,?[0-9]*\})(?:[*+{]|\?[*+?{])")


def regex(pattern: str) -> str:
    """Translate a pattern of ECMA-262 for llguidance.

    llguidance uses the syntax of Rust, in which brackets nest and have operators. A negated class such as \\W excludes
    every character that belongs to \\w in ECMA-262 or in Python.

    In the translation no class contains NUL, which never occurs in an output: llguidance 1.9 treats a class of all
    control characters as if it contained the quotation mark and the backslash too.

    Raises:
        ValueError: The pattern is not valid in ECMA-262, or llguidance would read it differently.
    """
    # ECMA-262 has no possessive quantifiers ("a++"); Python has them since 3.11.
    if found := _REPEATED_TWICE.search(_ATOM.sub("a", pattern)):
        raise ValueError(f"{found[0]!r}: put a repetition that is repeated in a group")
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
                raise ValueError(f"{piece!r} has nothing to repeat: it follows an assertion such as ^")
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
