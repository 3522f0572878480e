# SPDX-License-Identifier: Apache-2.0
"""Long texts are tokenized in parts of bounded length, to the same ids."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from inference_bridge import load_model
from inference_bridge.backends.llama_cpp.model import LlamaModel
from inference_bridge.backends.llama_cpp.tokenizer import NativeTokenizer

from ...parts.models.tiny_gguf import write_llama

PARTS = ("\u2603", "the quick ", " ", "  ", "\n", "\u0e01\u0e02", "é", "😀", "<0x41>", "\u2581", "x" * 50)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    """Its vocabulary is SentencePiece's: bytes, a space, and a few special tokens."""
    with load_model(write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf"), backend="llama_cpp") as loaded:
        assert isinstance(loaded, LlamaModel)
        yield loaded


@pytest.mark.parametrize("seed", range(4))
def test_a_long_text_has_the_same_ids_in_parts(model: LlamaModel, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = random.Random(seed)
    text = "".join(chosen.choice(PARTS) for _ in range(20_000))
    whole = model.tokenize(text)
    tokenized = NativeTokenizer._native
    lengths: list[int] = []

    def noted(self: NativeTokenizer, text: str, add_special: bool, parse_special: bool) -> list[int]:
        lengths.append(len(text))
        return tokenized(self, text, add_special, parse_special)

    monkeypatch.setattr(NativeTokenizer, "_runs", lambda self, text: iter([tokenized(self, text, False, False)]))
    assert model.tokenize(text) == whole
    monkeypatch.undo()
    monkeypatch.setattr(NativeTokenizer, "_native", noted)
    assert model.tokenize(text) == whole
    assert max(lengths) < 20_000
    assert sum(lengths) < 1.1 * len(text)
