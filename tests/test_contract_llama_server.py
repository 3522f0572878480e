# SPDX-License-Identifier: Apache-2.0
"""The llama_server backend keeps the contract, in the real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from inference_bridge.testing import BackendSuite

from .contract_models import DEMO_MODEL, OnTinyServer
from .managed import short_directory
from .tiny_gguf import write_llama


@pytest.fixture(scope="module", autouse=True)
def _runtime() -> Iterator[None]:
    with short_directory() as path, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(path))
        yield


NONE: Any = None
"""In place of a test."""


class TestModel(OnTinyServer):
    """On a random model, whose answers are tested, with the real one, where the http backend is."""

    __test__ = True
    load_options: ClassVar = {
        "context_length": 1280,
        "parallel_slots": 4,
        "threads": 1,
        "extra": ["--flash-attn", "off", "--no-repack"],
    }

    # What such a model fills with white space until max_tokens.
    test_a_forced_call = NONE
    test_and_so_it_is_in_a_batch = NONE
    test_neighbours_have_schemas_of_their_own = NONE
    test_text_is_whole_characters = NONE
    test_generate_parses_nothing = NONE

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        path = write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", 2048)
        cls.source = f"llama_server:{path}"


class TestBackend(BackendSuite):
    name = "llama_server"
    source = DEMO_MODEL
    missing = "/no/such/model.gguf"
    engine_modules = ("httpx2", "psutil", "xllamacpp")
