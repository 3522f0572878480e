# SPDX-License-Identifier: Apache-2.0
"""An answer is completed within its limit of tokens, whatever the model says."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray

from inference_bridge.chat.markup import ChatFormat, Thinking
from inference_bridge.grammar.completion import closing, closing_search
from inference_bridge.grammar.grammar import RESERVE, AnswerConstraint, Grammar, Vocabulary, answer_grammar
from tests.parts.models.byte_model import END, PADDING, ByteTokens, choose, vocabulary
from tests.parts.schemas.real import SCHEMAS

TOKENS = ByteTokens(more=['{"', '":"', '","', '"}', '":', "}]", "]}", "name", "true", "null", "000", "the ", "\\n"])
VOCABULARY = vocabulary(TOKENS)
NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def grammar(schema: Any, limit: int, *, vocabulary: Vocabulary = VOCABULARY, **options: Any) -> Grammar:
    made = answer_grammar(vocabulary, schema, backend="engine", **options)
    assert made is not None
    made.limit(limit)
    return made


def ramble(made: Grammar, limit: int, rng: random.Random, tokens: ByteTokens = TOKENS) -> list[int]:
    """The output of a model that would never end by itself, up to the limit, with the engines' choice of tokens."""
    said: list[int] = []
    while len(said) < limit and not made.finished:
        logits: NDArray[np.float32] = np.array([rng.random() for _ in range(len(tokens.texts) + PADDING)], np.float32)
        logits[[ord("}"), ord('"'), ord("]"), END]] -= 0.8
        if (token := choose(made, logits)) == END:
            break
        said.append(token)
    return said


@pytest.mark.parametrize("extra", [0, 1, 2, 7, 60])
@pytest.mark.parametrize("name", SCHEMAS)
def test_an_answer_that_fits_is_complete(name: str, extra: int) -> None:
    schema = SCHEMAS[name][1]
    shortest = grammar(schema, RESERVE).shortest
    assert shortest is not None
    made = grammar(schema, shortest + extra)
    said = ramble(made, shortest + extra, random.Random(extra))
    assert made.complete
    assert len(said) <= shortest + extra
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    validator(schema).validate(json.loads(TOKENS.read(said)))


def test_an_answer_that_cannot_fit_is_not_completed() -> None:
    shortest = grammar(NAME, RESERVE).shortest
    assert shortest == len(['{"', "name", '":"', '"}'])
    made = grammar(NAME, shortest - 1)
    said = ramble(made, shortest - 1, random.Random(0))
    assert not made.complete
    assert not made.shortened
    assert len(said) == shortest - 1


def test_a_distant_limit_has_no_effect() -> None:
    made = grammar(NAME, RESERVE * 2)
    assert made.shortest is None
    for byte in b'{"name":"a"}':
        assert made.fits(byte)
        made.accept(byte)
    assert (made.complete, made.shortened) == (True, False)


def test_a_limit_comes_near_while_the_text_grows() -> None:
    limit = RESERVE + 50
    made = grammar(NAME, limit)
    said = ramble(made, limit, random.Random(1))
    assert len(said) <= limit
    assert json.loads(TOKENS.read(said))["name"]


def test_what_would_not_fit_is_excluded_and_said_to_be_shortened() -> None:
    made = grammar(NAME, 5)
    for token in (TOKENS.id('{"'), TOKENS.id("name"), TOKENS.id('":"')):
        assert made.fits(token)
        made.accept(token)
    assert made.fits(ord("a")), "and the end behind it"
    made.accept(ord("a"))
    assert not made.fits(ord("b"))
    logits: NDArray[np.float32] = np.zeros(len(TOKENS.texts) + PADDING, np.float32)
    made.exclude(ord("b"), logits)
    assert logits[ord("b")] == -np.inf
    assert made.shortened
    assert made.fits(TOKENS.id('"}'))
    made.accept(TOKENS.id('"}'))
    assert made.finished


@pytest.mark.parametrize(
    ("schema", "shortest"),
    [
        ({"enum": ["a long one", "mid", "b"]}, '"b"'),
        ({"anyOf": [NAME, {"type": "null"}]}, "null"),
        ({"type": "string", "minLength": 3}, '"000"'),
        ({"type": "integer", "minimum": 1000}, None),
        ({"type": "string", "pattern": "^[^@]+@[a-z]+\\.com$"}, None),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, "[true,true]"),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}}}, "{}"),
    ],
)
def test_the_shortest_completion(schema: dict[str, Any], shortest: str | None) -> None:
    made = grammar(schema, RESERVE)
    assert made.shortest is not None
    if shortest is not None:
        assert made.shortest <= len(shortest)
    said = ramble(made := grammar(schema, made.shortest), made.shortest or 0, random.Random(0))
    jsonschema.validate(json.loads(TOKENS.read(said)), schema)


@pytest.mark.parametrize("special", [True, False])
def test_reasoning_leaves_room_for_the_answer(special: bool) -> None:
    tokens = ByteTokens(["<think>", "</think>"] if special else [])
    think = ChatFormat(Thinking("<think>", "</think>"))
    for seed in range(5):
        made = grammar(NAME, 60, vocabulary=vocabulary(tokens), format=think, in_reasoning=True)
        said = ramble(made, 60, random.Random(seed), tokens)
        text = b"".join(tokens.texts[token] for token in said).decode(errors="replace")
        assert made.complete, text
        assert "name" in json.loads(text.partition("</think>")[2])


@pytest.mark.parametrize("seed", range(10))
def test_random_texts_of_a_lark_grammar_are_completed(seed: int) -> None:

    lark = 'start: item ("," item){1,}\nitem: /[a-z]+/ "(" start? ")"'
    made = grammar(AnswerConstraint(grammar=lark), 20 + seed)
    said = ramble(made, 20 + seed, random.Random(seed))
    assert made.complete, TOKENS.read(said)


def test_searches_for_one_token_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine waits for them between two steps, and with it every other sequence."""
    monkeypatch.setattr(closing, "TOKEN_STEPS", 1)
    made = grammar(AnswerConstraint(grammar='start: item ("," item){1,}\nitem: /[a-z]+/ "(" start? ")"'), 24)
    ramble(made, 24, random.Random(1))
    assert made.complete
    assert made.shortened


AMBIGUOUS = "r0: {}\nr1: r0+\nr2: r1*\n"
"""A text has many readings: a repetition of a repetition. A matcher grows with them."""


def test_an_ending_of_other_characters_than_ascii_is_found() -> None:
    made = grammar(AnswerConstraint(grammar=AMBIGUOUS.format('"nf9l"') + 'start: r2 "é!"'), RESERVE)
    assert made.shortest == len("é!".encode())


def test_a_search_frees_the_states_that_it_has_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among many characters only ASCII ones are tried, and without the words of patterns this ending is not found."""
    nodes: list[closing_search._Node] = []
    new = closing_search.Search._is_new

    def noted(self: closing_search.Search, node: closing_search._Node, known: closing_search._Known) -> bool:
        nodes.append(node)
        most.append(sum(one.matcher is not None for one in nodes))
        return new(self, node, known)

    most: list[int] = []
    monkeypatch.setattr(closing_search.Search, "_is_new", noted)
    monkeypatch.setattr(closing_search, "pattern_words", lambda grammar: list[str]())
    monkeypatch.setattr(closing, "FIRST_STEPS", 4000)
    made = grammar(AnswerConstraint(grammar=AMBIGUOUS.format("/[A-Z]/") + "start: r2 /[é-ü]/"), RESERVE)
    assert made.shortest is None
    assert len(nodes) > 20
    assert max(most) < 10
