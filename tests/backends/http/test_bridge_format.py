# SPDX-License-Identifier: Apache-2.0
"""Tokens in the JSON of /bridge."""

from __future__ import annotations

import json
import math

import pytest

from inference_bridge import Token, TopLogprob
from inference_bridge.backends.http.bridge_format import token_from_json, token_to_json


@pytest.mark.parametrize("logprob", [0.0, -0.5, -1e300, -math.inf])
def test_a_log_probability_arrives_as_it_was_sent(logprob: float) -> None:
    token = Token("a", 1, logprob, (TopLogprob("b", 2, logprob),))
    assert token_from_json(json.loads(json.dumps(token_to_json(token), allow_nan=False))) == token


def test_nan_stays_nan() -> None:
    token = token_from_json({"content": "a", "logprob": math.nan, "top": [["b", 2, math.nan]]})
    assert token.logprob is not None
    assert math.isnan(token.logprob)
    assert math.isnan(token.top_logprobs[0].logprob)
