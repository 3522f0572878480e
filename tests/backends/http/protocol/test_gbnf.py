# SPDX-License-Identifier: Apache-2.0
"""Choices as a grammar for llama-server: its texts are the choices."""

from __future__ import annotations

import random
import re

import pytest

from inference_bridge import UnsupportedError
from inference_bridge.backends.http.protocol.gbnf import check_choices, choices_grammar

_CODE = re.compile(r"\\U([0-9A-F]{8})")


def texts_of(grammar: str) -> list[str]:
    """All texts of a grammar whose alternatives are a literal, or a literal and a rule."""
    rules = dict(line.split(" ::= ", 1) for line in grammar.split("\n"))

    def texts(rule: str) -> list[str]:
        out = []
        for alternative in rules[rule].split(" | "):
            literal, _, following = alternative.rpartition('"')
            text = _CODE.sub(lambda found: chr(int(found[1], 16)), literal.removeprefix('"'))
            out += [text + rest for rest in (texts(following.strip()) if following else [""])]
        return out

    assert rules.pop("root") == "r0"
    return texts("r0")


@pytest.mark.parametrize(
    "choices",
    [
        ["yes"],
        ["yes", "no", "yes"],
        ["a", "ab", "abc", "b"],
        ['say "no"', "a\\b", "new\nline", "\x01\x7f", "nö", "🎉", "🎉🎉", " "],
    ],
    ids=str,
)
def test_texts_are_the_choices(choices: list[str]) -> None:
    assert sorted(texts_of(choices_grammar(choices))) == sorted({*choices})


def test_texts_are_random_choices() -> None:
    rng = random.Random(0)
    for _ in range(200):
        choices = ["".join(rng.choices('ab"\n', k=rng.randint(1, 6))) for _ in range(rng.randint(1, 30))]
        assert sorted(texts_of(choices_grammar(choices))) == sorted({*choices})


def test_rules_are_not_nested_however_long_the_common_beginnings() -> None:
    grammar = choices_grammar(["a" * length for length in range(1, 5000)])
    assert all(line.count("r") <= 2 for line in grammar.split("\n")[1:])


def test_choices_that_no_grammar_can_have_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="NUL"):
        check_choices(["a", "\0"], "http")
    with pytest.raises(ValueError, match="Unicode"):
        check_choices(["\ud800"], "http")
