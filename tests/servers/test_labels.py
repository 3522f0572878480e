# SPDX-License-Identifier: Apache-2.0
"""Scores of `classify` agree with the probabilities of the server at SUITE_URL, if that is a vLLM server."""

from __future__ import annotations

import pytest

from inference_bridge import load_model
from inference_bridge.backends.http.model import HttpModel

from .labels import BOUND, Truth, differences
from .test_contract import KEY, URL

pytestmark = pytest.mark.skipif(not URL, reason="SUITE_URL names no server: see python -m tests.servers")


def test_label_scores_agree_with_the_probabilities_of_the_server() -> None:
    with load_model(URL, api_key=KEY) as model, Truth(URL, KEY) as truth:
        assert isinstance(model, HttpModel)
        if model.facts.server != "vllm":
            # The truth is computed from `prompt_logprobs`, a parameter of vLLM's alone.
            pytest.skip("the server has no log probabilities of a prompt's tokens to compare with")
        worst, prompt, pairs = differences(model, truth, 10)[0]
        assert worst <= BOUND, f"{prompt!r}: {pairs}"
