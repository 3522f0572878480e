# SPDX-License-Identifier: Apache-2.0
"""The flag that stops a step of llama.cpp."""

from __future__ import annotations

import os

import pytest

from inference_bridge.backends.llama_cpp.abort_flag import AbortFlag
from inference_bridge.backends.llama_cpp.library import lib


@pytest.mark.skipif(
    os.name != "posix", reason="the callback is C's strlen, which this platform's process does not have"
)
def test_abort_callback_answers_as_c_calls_it() -> None:
    params = lib.llama_context_default_params()
    flag = AbortFlag()
    flag.install(params)
    assert params.abort_callback(params.abort_callback_data) is False
    flag.raise_()
    assert params.abort_callback(params.abort_callback_data) is True
