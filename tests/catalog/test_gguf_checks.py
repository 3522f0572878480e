# SPDX-License-Identifier: Apache-2.0
"""Checks of GGUF models before they are loaded: the context length, and whether the context may grow."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from inference_bridge.catalog import discovery, gguf_checks
from inference_bridge.catalog.headers.gguf import GGUFMetadata, read_metadata

from ..parts.models.gguf_files import TensorSpec, write_model, write_projector

# 32 layers of 8 heads of 128, as in Llama 3 8B.
SHAPE = {
    "llama.context_length": 131_072,
    "llama.block_count": 32,
    "llama.embedding_length": 4096,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
}
GIB = 1 << 30


@pytest.mark.parametrize(
    ("stacked", "counted"),
    [(0, True), (1, True), (4, True), (8, False), (10, True), (15, True)],  # 4: Voxtral's, 8: Ultravox's
)
def test_sounds_whose_tokens_are_miscounted(stacked: int, counted: bool, tmp_path: Path) -> None:
    sizes = {"audio__projector__stack_factor": stacked} if stacked else {}
    projector = read_metadata(write_projector(tmp_path / "mmproj.gguf", **sizes))
    assert gguf_checks.counts_sounds(projector) is counted


@pytest.fixture
def llama(tmp_path: Path) -> GGUFMetadata:
    return read_metadata(write_model(tmp_path / "llama.gguf", SHAPE))


def test_the_memory_of_a_token_is_that_of_its_keys_and_values(llama: GGUFMetadata) -> None:
    assert gguf_checks.bytes_per_token(llama) == 131_072  # 16 GiB for all of the context


@pytest.mark.parametrize(
    ("slots", "memory", "expected"),
    [
        (1, 100 * GIB, 131_072),
        (1, 10 * GIB, 57_344),  # seven tenths of it
        (4, 10 * GIB, 14_336),
        (4, 0, 512),
    ],
)
def test_the_context_length_fits_into_memory(slots: int, memory: int, expected: int, llama: GGUFMetadata) -> None:
    assert gguf_checks.context_length(llama, 0, slots, memory) == expected


def test_a_requested_context_length_is_used_with_a_warning_if_it_may_not_fit(
    llama: GGUFMetadata, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert gguf_checks.context_length(llama, 32_768, 2, 10 * GIB) == 32_768
        assert not caplog.records
        assert gguf_checks.context_length(llama, 65_536, 2, 10 * GIB) == 65_536
        (record,) = caplog.records
        assert "65536 in each of 2 slots takes 17.2 GB when it is full, and 10.7 are free" in record.getMessage()
        caplog.clear()
        assert gguf_checks.context_length(llama, 200_000, 1, 100 * GIB) == 200_000
        assert "more than the 131072" in caplog.text


def test_a_model_with_two_sets_of_rotary_factors_does_not_grow(llama: GGUFMetadata, tmp_path: Path) -> None:
    """As Phi-3.5-mini has them: llama.cpp takes one or the other by the size of the context."""
    tensors = [TensorSpec(), *(TensorSpec(f"rope_factors_{which}.weight", (48,), 0) for which in ("long", "short"))]
    phi = read_metadata(write_model(tmp_path / "phi.gguf", SHAPE, tensors))
    assert not gguf_checks.is_free_of_length(phi)
    assert gguf_checks.is_free_of_length(llama)


def test_a_projector_is_looked_for_where_models_are(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No directory is searched for a model in another place."""
    searched = tmp_path / "searched"
    for place in (searched, tmp_path / "elsewhere"):
        write_model(place / "sees.gguf")
        write_projector(place / "mmproj.gguf")
    (tmp_path / "linked").symlink_to(searched)
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(tmp_path / "linked"))
    assert gguf_checks.projector_of(str(tmp_path / "linked" / "sees.gguf")) == str(tmp_path / "linked" / "mmproj.gguf")
    monkeypatch.setattr(discovery, "discover", lambda: pytest.fail("a search"))
    assert gguf_checks.projector_of(str(tmp_path / "elsewhere" / "sees.gguf")) is None
