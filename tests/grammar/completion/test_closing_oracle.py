# SPDX-License-Identifier: Apache-2.0
"""The completion of an answer is the shortest possible: random grammars, compared with an exhaustive search.

The vocabulary is small, so that every text up to a length can be tried. The search does not distinguish states.
"""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from inference_bridge.grammar.grammar import RESERVE, AnswerConstraint, Grammar, Vocabulary, answer_grammar
from tests.parts.models.byte_model import choose

MOST_TRIED = 20_000
"""Texts that the oracle tries for one grammar, at most."""


class FewTokens:
    """A vocabulary of these texts and an end, as llguidance asks for one."""

    def __init__(self, *texts: str) -> None:
        self.texts = [text.encode() for text in texts]
        self.tokens = [*self.texts, b"\xff<end>"]
        self.special_token_ids = [len(texts)]
        self.eos_token_id = len(texts)
        self.bos_token_id = None

    def __call__(self, text: bytes | str) -> list[int]:
        return [self.texts.index(bytes([byte])) for byte in (text if isinstance(text, bytes) else text.encode())]

    def read(self, tokens: list[int]) -> str:
        return b"".join(self.texts[token] for token in tokens).decode()


TOKENS = FewTokens(*'ab0A-"[]{},:x.', '"}', "ab", '":', '{"', "],[", "xxx", "00", "[[")
TOKENIZER = LLTokenizer(TokenizerWrapper(TOKENS))
VOCABULARY = Vocabulary(lambda: TOKENIZER)
END = TOKENS.eos_token_id


def fewest(matcher: LLMatcher, below: int) -> int | None:
    """The smallest number of tokens that complete the text, at most `below`; None if the search is too large."""
    texts: dict[str, LLMatcher] = {"": matcher}
    tried = 0
    for count in range(below):
        if any(state.is_accepting() for state in texts.values()):
            return count
        after: dict[str, LLMatcher] = {}
        for text, state in texts.items():
            if tried > MOST_TRIED:
                return None
            for token, piece in enumerate(TOKENS.texts):
                tried += 1
                if text + piece.decode() not in after and state.validate_tokens([token]):
                    following = state.deep_copy()
                    following.consume_token(token)
                    after[text + piece.decode()] = following
        texts = after
    return below


def grammar(constraint: Any, limit: int) -> Grammar:
    made = answer_grammar(VOCABULARY, constraint, backend="engine")
    assert made is not None
    made.limit(limit)
    return made


def _allowed(state: LLMatcher) -> list[int]:
    return [token for token in range(END) if state.validate_tokens([token])]


def started(made: Grammar, rng: random.Random, most: int) -> list[int]:
    """Random tokens, up to `most`, that do not complete the text."""
    said: list[int] = []
    for _ in range(most):
        allowed = _allowed(made._matcher)
        if not allowed or made.complete:
            break
        token = rng.choice(allowed)
        made.accept(token)
        said.append(token)
    return said


def check(constraint: Any, seed: int, before: int, *, over: int = 0) -> bool:
    """Whether any text satisfies the grammar. Asserts that the completion is the shortest, within a limit.

    `over`: tokens that it may take beyond.
    """
    rng = random.Random(seed)
    try:
        made = grammar(constraint, 10 * RESERVE)
    except ValueError:  # no text satisfies the grammar
        return False
    said = started(made, rng, before)
    made.limit(RESERVE)
    if not made.complete and not _allowed(made._matcher):
        return False
    shortest = made.shortest
    assert shortest is not None, (constraint, TOKENS.read(said))
    truth = fewest(made._matcher.deep_copy(), shortest)
    assert truth is None or truth <= shortest <= truth + over, (constraint, TOKENS.read(said), truth, shortest)
    # A model that goes on for as long as it may comes to an end within that limit, and some tokens more.
    limit = shortest + rng.randrange(4)
    made.limit(limit)
    for _ in range(limit):
        if made.finished:
            break
        logits: NDArray[np.float32] = np.array([rng.random() for _ in range(END + 1)], np.float32)
        logits[END] = -1
        if choose(made, logits) == END:
            break
    assert made.complete, (constraint, TOKENS.read(said), limit)
    return True


# ---------------------------------------------------------------- grammars

_ATOMS = st.sampled_from(["a", "b", "0", "A", "-", "[ab]", "[0A]", "[ab0A-]", "[^a]", "x", "ab", "00"])


def _repeated(part: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    counts = st.sampled_from(["*", "+", "?", "{2}", "{3}", "{2,}", "{1,4}", "{4,}"])
    return st.builds(lambda inside, count: f"(?:{inside}){count}", part, counts)


_PARTS = st.recursive(
    _ATOMS,
    lambda part: st.one_of(
        st.builds("{}{}".format, part, part), st.builds("(?:{}|{})".format, part, part), _repeated(part)
    ),
    max_leaves=5,
)
_LACKS = st.sampled_from(
    ["", "(?=.*0)", "(?=.*A)", "(?=.*0)(?=.*A)", "(?=.*ab)", "(?=.*0)(?=.*A)(?=.*[-.])", "(?!.*--)"]
)
REGEXES = st.builds(lambda lacks, part: f"^{lacks}{part}$", _LACKS, _PARTS) | st.builds(
    lambda lacks, least: f"^{lacks}[ab0A-]{{{least},}}$", _LACKS, st.integers(0, 5)
)

_TEXTS = st.text("ab0Ax", max_size=6)
_STRINGS = st.one_of(
    st.just({"type": "string"}),
    st.builds(lambda least: {"type": "string", "minLength": least}, st.integers(1, 4)),
    st.builds(lambda pattern: {"type": "string", "pattern": pattern}, REGEXES),
    st.builds(
        lambda lacks, least: {"type": "string", "pattern": f"^{lacks}.*$", "minLength": least},
        _LACKS,
        st.integers(0, 4),
    ),
    st.builds(lambda texts: {"enum": texts}, st.lists(_TEXTS, min_size=1, max_size=4)),
    st.builds(lambda text: {"const": text}, _TEXTS),
    st.just({"type": "integer"}),
)


def _arrays(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(lambda item, least: {"type": "array", "items": item, "minItems": least}, items, st.integers(0, 3))


def _objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda properties, needed: {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if name in needed],
        },
        st.dictionaries(st.sampled_from(["a", "b", "xxx"]), values, max_size=2),
        st.sets(st.sampled_from(["a", "b", "xxx"])),
    )


SCHEMAS = st.recursive(
    _STRINGS,
    lambda part: st.one_of(
        _arrays(part), _objects(part), st.builds(lambda parts: {"anyOf": parts}, st.lists(part, min_size=1, max_size=3))
    ),
    max_leaves=4,
)

LARKS = st.builds(
    lambda item, least, wrapped, other: (
        f'start: item ("," item){{{least},}}\nitem: /{item}/ "[" start? "]" | {json.dumps(wrapped)} "x" item | '
        + json.dumps(other)
    ),
    st.sampled_from(["[ab]+", "a?b", "0{2,4}", "A-"]),
    st.integers(0, 3),
    st.text("ab0A-", min_size=1, max_size=3),
    st.text("ab0A-", min_size=3, max_size=6),
)

RUN = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@RUN
@given(REGEXES, st.integers(0, 1000), st.integers(0, 3))
def test_a_regex_is_closed_the_shortest_way(pattern: str, seed: int, before: int) -> None:
    assume(check(AnswerConstraint(regex=pattern), seed, before))


@RUN
@given(SCHEMAS, st.integers(0, 1000), st.integers(0, 4))
def test_a_schema_is_closed_the_shortest_way(schema: Any, seed: int, before: int) -> None:
    assume(check(schema, seed, before))


@RUN
@given(LARKS, st.integers(0, 1000), st.integers(0, 4))
def test_a_lark_grammar_is_closed_nearly_the_shortest_way(lark: str, seed: int, before: int) -> None:
    # Of items that differ in length and nest, not every combination is tried.
    assume(check(AnswerConstraint(grammar=lark), seed, before, over=2))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(?=.*[a-z])(?=.*[A-Z])(?=.*[0-9])(?=.*[-.])[ -~]{8,}$"},
        {"type": "string", "pattern": "^.*ab$", "minLength": 6},
        {"type": "array", "items": {"type": "array", "items": {"type": "array", "minItems": 2}, "minItems": 2}},
    ],
)
def test_required_tokens_are_counted(schema: Any) -> None:
    for seed in range(3):
        assert check(schema, seed, seed)
