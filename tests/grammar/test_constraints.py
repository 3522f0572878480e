# SPDX-License-Identifier: Apache-2.0
"""Answers of a regular expression, of a list, and of a Lark grammar."""

from __future__ import annotations

import random
import re

import pytest

from inference_bridge import GenerateConfig, Tool, UnsupportedError
from inference_bridge.grammar.constraints import MAX_CHOICES, MAX_REGEX
from inference_bridge.grammar.grammar import AnswerConstraint, answer_grammar, check_answer
from tests.parts.models.byte_model import ByteTokens, vocabulary, walk

TOKENS = ByteTokens()
VOCABULARY = vocabulary(TOKENS)


def said(constraint: AnswerConstraint, count: int = 20, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        made = answer_grammar(VOCABULARY, constraint, backend="engine")
        assert made is not None
        found = walk(made, rng, TOKENS, limit=200)
        if found is not None:
            texts.append(TOKENS.read(found))
    return texts


PATTERNS = [
    r"\d{4}-\d{2}",
    r"^[a-c]{3}/x$",
    r"(yes|no)!?",
    r"cat|dog",
    r"^a\$$",
    r"a\\",
    r"^(?!b)(?=.*[0-9])[a-z0-9]{4}$",
    r"[\"'/]{2}",
    r"\n\ta",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_whole_text_matches_a_regex(pattern: str) -> None:
    texts = said(AnswerConstraint(regex=pattern))
    assert texts
    for text in texts:
        assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize("pattern", ["(a+)+", r"\++", "[+*]{2}", r"\p{L}+", "a+?b*?", "a{2,}?", "(?:a?)*", r"\\\\+?"])
def test_a_repetition_that_is_not_repeated_is_taken(pattern: str) -> None:
    check_answer(AnswerConstraint(regex=pattern), backend="engine")


def test_the_text_is_a_choice() -> None:
    choices = ["yes", "yes, please", 'say "no"', "nö\n", "a\\b", "\x01\x7f"]
    assert {*said(AnswerConstraint(choices=choices), 100)} == {*choices}


def test_the_text_follows_a_lark_grammar() -> None:
    lark = 'start: r0 | "none"\nr0: A+ "!"\nA: /[ab]/'  # the names are those of our own rules
    for text in said(AnswerConstraint(grammar=lark)):
        assert text == "none" or re.fullmatch("[ab]+!", text)


# Python 3.11 reads "a++" as a repetition that gives nothing back, so it matches other texts than (a+)+.
@pytest.mark.parametrize(
    "pattern", [r"(a)\1", r"a(?=b)c", r"(?<=a)b", "a++a", "a*+", "a?+", "a{2}{3}", "a{2}+", "a???"]
)
def test_unsupported_regular_expressions_are_refused(pattern: str) -> None:
    with pytest.raises(UnsupportedError, match="regex"):
        check_answer(AnswerConstraint(regex=pattern), backend="engine")


@pytest.mark.parametrize(
    "constraint",
    [
        AnswerConstraint(regex="(a"),
        AnswerConstraint(regex="a" * (MAX_REGEX + 1)),
        AnswerConstraint(choices=["a"] * (MAX_CHOICES + 1)),
        AnswerConstraint(choices=["a", "\ud800"]),
        AnswerConstraint(regex="\ud800"),
        AnswerConstraint(grammar='start: "\ud800"'),
        AnswerConstraint(grammar="start: missing"),
        AnswerConstraint(grammar='begin: "a"'),
    ],
    ids=[
        "bracket",
        "long",
        "many",
        "choices that are no text",
        "regex that is no text",
        "grammar that is no text",
        "missing rule",
        "no start",
    ],
)
def test_a_constraint_that_does_not_compile_is_a_value_error(constraint: AnswerConstraint) -> None:
    with pytest.raises(ValueError, match=r"regex|choices|grammar"):
        check_answer(constraint, backend="engine")


def test_constraints_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="regex and choices exclude each other"):
        GenerateConfig(regex="a", choices=["b"])
    with pytest.raises(ValueError, match="json_schema and grammar exclude each other"):
        GenerateConfig(json_schema={}, grammar="start: /a/")
    with pytest.raises(ValueError, match="regex and tool_choice='required' exclude each other"):
        GenerateConfig(regex="a", tools=[Tool("t")], tool_choice="required")
    with pytest.raises(TypeError, match="choices must be a sequence"):
        GenerateConfig(choices="yes")
    with pytest.raises(ValueError, match="choices must not be empty"):
        GenerateConfig(choices=[])
