# SPDX-License-Identifier: Apache-2.0
"""Targets: regular expressions, choices, Lark grammars and JSON Schemas, as constraints of an answer.

An answer to one of the first three is what Python's `re` matches too, one to a schema is what `jsonschema` accepts.

The bytes of an input are the seed of a random constraint, and of a model that says anything it may.
"""

from __future__ import annotations

import json
import random
import re
import string
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from inference_bridge import TextModel, UnsupportedError, load_model
from inference_bridge.grammar.grammar import AnswerConstraint, Vocabulary, answer_grammar, check_answer
from tests.parts.models.byte_model import ByteTokens, vocabulary, walk
from tests.parts.models.mlx_tiny import write_tiny_mlx
from tests.parts.models.tiny_gguf import write_llama
from tests.parts.schemas.random import random_schema

_CHARACTERS = string.ascii_lowercase + string.digits + " -_.:/\"'\\é"
_CLASSES = ("[a-f]", "[0-9]", r"\d", r"\w", "[^a-y]", r"[\-x]", ".")


@dataclass(frozen=True)
class Case:
    """A constraint: one of GenerateConfig's fields, and whether a text is right."""

    name: str
    value: Any
    right: Callable[[str], bool]


def regex_case(rng: random.Random) -> Case:
    pattern = _regex(rng, 3)
    return Case("regex", pattern, lambda text: re.fullmatch(pattern, text) is not None)


def choices_case(rng: random.Random) -> Case:
    choices = [_text(rng, 8) for _ in range(rng.randint(1, 6))]
    choices += [choices[0] + _text(rng, 3)] * rng.randint(0, 1)  # one that begins with another
    return Case("choices", choices, choices.__contains__)


def lark_case(rng: random.Random) -> Case:
    """Rules without recursion, which are a regular expression too."""
    rules: list[str] = []
    pattern = _rule(rng, rules, 3)
    grammar = "\n".join([f"start: r{len(rules) - 1}", *rules])
    return Case("grammar", grammar, lambda text: re.fullmatch(pattern, text, re.DOTALL) is not None)


def schema_case(rng: random.Random) -> Case:
    """The next random schema that is not refused."""
    schema = _schema(rng)
    while not _is_held(schema):
        schema = _schema(rng)
    validator = jsonschema.Draft202012Validator(schema)
    return Case("json_schema", schema, lambda text: validator.is_valid(json.loads(text)))


CASES = {"regex": regex_case, "choices": choices_case, "lark": lark_case, "json": schema_case}


def _text(rng: random.Random, longest: int) -> str:
    return "".join(rng.choice(_CHARACTERS) for _ in range(rng.randint(1, longest)))


def _schema(rng: random.Random) -> dict[str, Any]:
    return random_schema(rng, 3) | {"$defs": {name: random_schema(rng, 2) for name in "pq"}}


def _is_held(schema: dict[str, Any]) -> bool:
    try:
        check_answer(schema, backend="fuzz")
    except (UnsupportedError, ValueError):
        return False
    return True


def _regex(rng: random.Random, depth: int) -> str:
    kind = rng.randrange(6 if depth else 2)
    if kind == 0:
        return re.escape(_text(rng, 3))
    if kind == 1:
        return rng.choice(_CLASSES)
    if kind == 2:
        return f"({_regex(rng, depth - 1)}|{_regex(rng, depth - 1)})"
    if kind == 3:
        low = rng.randint(0, 3)
        return f"(?:{_regex(rng, depth - 1)}){rng.choice(('?', '*', '+', f'{{{low},{low + rng.randint(0, 2)}}}'))}"
    return _regex(rng, depth - 1) + _regex(rng, depth - 1)


def _rule(rng: random.Random, rules: list[str], depth: int) -> str:
    """Add a rule, and return the same as a regular expression."""
    parts = [_term(rng, rules, depth) for _ in range(rng.randint(1, 3))]
    between, joined = rng.choice(((" ", ""), (" | ", "|")))
    rules.append(f"r{len(rules)}: {between.join(term for term, _ in parts)}")
    return f"(?:{joined.join(pattern for _, pattern in parts)})"


def _term(rng: random.Random, rules: list[str], depth: int) -> tuple[str, str]:
    kind = rng.randrange(4 if depth else 2)
    if kind == 0:
        text = _text(rng, 4)
        return json.dumps(text, ensure_ascii=False), re.escape(text)
    if kind == 1:
        pattern = rng.choice(("[a-f]{1,3}", "[0-9]+", "x?y"))
        return f"/{pattern}/", f"(?:{pattern})"
    inner = _rule(rng, rules, depth - 1)
    mark = rng.choice(("", "?", "*", "+"))
    return f"r{len(rules) - 1}{mark}", f"{inner}{mark}"


# ---------------------------------------------------------------- targets


@cache
def _vocabulary() -> Vocabulary:
    return vocabulary()


def check(name: str, data: bytes) -> None:
    """Any text that a model of single bytes says is right."""
    rng = random.Random(data)
    case = CASES[name](rng)
    grammar = answer_grammar(_vocabulary(), AnswerConstraint(**{case.name: case.value}), backend="fuzz")
    assert grammar is not None
    said = walk(grammar, rng, limit=80)
    if said is not None:
        text = ByteTokens().read(said)
        assert case.right(text), (case.value, text)


def check_on(model: TextModel, name: str, data: bytes) -> None:
    """Every complete answer at temperature 1 satisfies the constraint."""
    rng = random.Random(data)
    case = CASES[name](rng)
    options: dict[str, Any] = {case.name: case.value}
    budget = rng.choice((8, 16, 48))
    stream = model.generate("Say:", temperature=1.0, seed=rng.randrange(2**32), max_tokens=budget, **options)
    text = stream.text()
    if stream.finish_reason == "stop":
        assert case.right(text), (case.value, text)


@cache
def _engine(backend: str) -> TextModel:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-constraints-"))
    path = write_tiny_mlx(folder / "tiny") if backend == "mlx" else write_llama(folder / "tiny.gguf")
    return load_model(f"{backend}:{path}", context_length=128)


def check_on_engine(backend: str, name: str, data: bytes) -> None:
    check_on(_engine(backend), name, data)


def seeds() -> list[bytes]:
    return [str(number).encode() for number in range(20)]
