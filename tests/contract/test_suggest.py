# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from inference_bridge._suggest import did_you_mean
from inference_bridge.options import GENERATE_FIELDS, LOAD_FIELDS, GenerateConfig, LoadConfig


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("n_ctx", "context_length"),
        ("num_ctx", "context_length"),
        ("N_CTX", "context_length"),
        ("n_gpu_layers", "gpu_layers"),
        ("n_threads", "threads"),
        ("context_lenght", "context_length"),
    ],
)
def test_a_load_option_under_another_name(name: str, meant: str) -> None:
    assert did_you_mean(name, LOAD_FIELDS) == f": did you mean {meant!r}?"
    with pytest.raises(TypeError, match=meant):
        LoadConfig().with_options({name: 1})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("num_predict", "max_tokens"),
        ("max_new_tokens", "max_tokens"),
        ("repetition_penalty", "repeat_penalty"),
        ("temprature", "temperature"),
        ("max_token", "max_tokens"),
    ],
)
def test_a_generation_option_under_another_name(name: str, meant: str) -> None:
    assert did_you_mean(name, GENERATE_FIELDS) == f": did you mean {meant!r}?"
    with pytest.raises(TypeError, match=meant):
        GenerateConfig().with_options({name: 1})


@pytest.mark.parametrize("name", ["banana", "n_ctx", "colour", "size", "x", ""])
def test_a_dissimilar_name_gets_no_suggestion(name: str) -> None:
    assert did_you_mean(name, GENERATE_FIELDS) == ""
