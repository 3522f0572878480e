# SPDX-License-Identifier: Apache-2.0
"""Target: JSON Schemas. One becomes a grammar that says nothing else, or is refused as documented."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import jsonschema

from inference_bridge.errors import UnsupportedError
from inference_bridge.grammar.grammar import Vocabulary, answer_grammar
from tests.parts.models.byte_model import ByteTokens, vocabulary, walk


@cache
def _vocabulary() -> Vocabulary:
    return vocabulary()


def schema(data: bytes) -> None:
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        grammar = answer_grammar(_vocabulary(), value, backend="fuzz")
    except (UnsupportedError, ValueError, TypeError):
        return
    if grammar is None:
        return
    said = walk(grammar, random.Random(0), limit=60)
    if said is None:
        return
    answer = json.loads(ByteTokens().read(said))
    validator = jsonschema.Draft202012Validator
    if not validator(validator.META_SCHEMA).is_valid(value):
        return  # an earlier draft's, which the validator of this one stumbles over
    errors = validator(value).iter_errors(answer)
    assert not [error.message for error in errors], answer
