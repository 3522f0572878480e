# SPDX-License-Identifier: Apache-2.0
"""The flag that llama.cpp asks for by itself."""

from __future__ import annotations

import ctypes

import pytest

from inference_bridge.backends.llama_cpp import flag as llama_flag
from inference_bridge.backends.llama_cpp.flag import Flag
from inference_bridge.backends.llama_cpp.library import lib


@pytest.fixture(params=["of C", "of Python"])
def python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a function of Python answers, as on machines that pass arguments in another way."""
    if request.param == "of Python":
        monkeypatch.setattr(llama_flag, "_strlen", None)
    elif not llama_flag.IS_FREE:
        # Windows, and processors other than x86-64 and AArch64: their calls put the pointer where strlen does not look
        # for it, so there only Python answers, which the other parameter shows everywhere.
        pytest.skip("on this machine no function of C can answer")
    return bool(request.param == "of Python")


@pytest.mark.parametrize("up", [False, True])
def test_it_is_what_it_was_set_to(up: bool) -> None:
    flag = Flag(up)
    assert bool(flag) is up
    flag.set(not up)
    assert bool(flag) is not up
    flag.set(up)
    assert bool(flag) is up


def test_what_a_callback_answers(python: bool) -> None:
    """As C calls it: with a number before the pointer where llama.cpp reads a model, without where it decodes."""
    loading, decoding = lib.llama_model_default_params(), lib.llama_context_default_params()
    wanted, stopped = Flag(True), Flag(False)
    wanted.answers(loading, "progress_callback", "progress_callback_user_data")
    stopped.answers(decoding, "abort_callback", "abort_callback_data")
    for up in (True, False, True):
        wanted.set(up)
        stopped.set(up)
        assert loading.progress_callback(0.5, loading.progress_callback_user_data) is up
        assert decoding.abort_callback(decoding.abort_callback_data) is up


def test_it_takes_no_lock_of_pythons(python: bool) -> None:
    params = lib.llama_model_default_params()
    Flag(True).answers(params, "progress_callback", "progress_callback_user_data")
    called = ctypes.cast(params.progress_callback, ctypes.c_void_p).value
    strlen = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value
    assert (called != strlen) is python
