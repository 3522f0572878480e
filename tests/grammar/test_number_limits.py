# SPDX-License-Identifier: Apache-2.0
"""Numbers end, and Python reads them as finite."""

from __future__ import annotations

import json
import math
import random

import pytest

from inference_bridge import GenerationError
from inference_bridge.grammar.grammar import answer_grammar
from inference_bridge.grammar.number_limits import MAX_DIGITS
from tests.parts.models.byte_model import ByteTokens, allowed, feed, vocabulary, walk

TOKENS = ByteTokens(more=["000", "999", "e99", "e400", "12345678901234567890123", ".5e3"])
VOCABULARY = vocabulary(TOKENS)
DIGITS = {*b"0123456789"}


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize("kind", ["integer", "number"])
def test_numbers_end(kind: str, seed: int) -> None:
    made = answer_grammar(VOCABULARY, {"type": "array", "items": {"type": kind}}, backend="engine")
    assert made is not None
    eager = dict.fromkeys([*DIGITS, *b"eE.", *range(257, len(TOKENS.texts))], 60.0)
    said = walk(made, random.Random(seed), TOKENS, limit=2000, weights=eager | {ord("]"): 0.5})
    if said is None:
        return
    for value in json.loads(TOKENS.read(said)):
        assert math.isfinite(value)
        assert len(str(value)) <= 2 * MAX_DIGITS + 8


@pytest.mark.parametrize("before", ["1" * MAX_DIGITS, "0." + "3" * MAX_DIGITS, "-1.5e-99"])
def test_a_number_at_its_length_limit_accepts_no_more_digits(before: str) -> None:
    made = answer_grammar(VOCABULARY, {"type": "array", "items": {"type": "number"}}, backend="engine")
    assert made is not None
    found = allowed(feed(made, "[" + before), tokens=TOKENS)
    assert not found & DIGITS
    assert {ord(","), ord("]")} <= found


def test_a_number_is_not_limited_in_a_string_or_where_the_schema_asks_for_it() -> None:
    text = answer_grammar(VOCABULARY, {"type": "string"}, backend="engine")
    assert text is not None
    assert allowed(feed(text, '"pi: 3.' + "1" * 60), tokens=TOKENS) >= DIGITS
    tiny = answer_grammar(VOCABULARY, {"const": 5e-300}, backend="engine")
    assert tiny is not None
    try:
        assert feed(tiny, "5e-300").complete
    except GenerationError:  # llguidance writes it otherwise
        pytest.skip("a number of this form is not what the constant is written as")


def test_exponents_are_there() -> None:
    made = answer_grammar(VOCABULARY, {"type": "number"}, backend="engine")
    assert made is not None
    assert feed(made, "6.02214076e23").complete
