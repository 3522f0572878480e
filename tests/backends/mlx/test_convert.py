# SPDX-License-Identifier: Apache-2.0
"""The converter that makes an MLX model of the demo's GGUF file keeps every number."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from inference_bridge.backends.mlx import model as mlx_model

from ...parts.models.mlx_convert import GROUP, Quantised, head_order, quantised

KINDS = [GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0]


def matrix(rows: int = 12, columns: int = 96) -> np.ndarray:
    values: np.ndarray = np.random.default_rng(3).standard_normal((rows, columns)).astype(np.float32)
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_the_same(kind: GGMLQuantizationType) -> None:
    data = quants.quantize(matrix(), kind)
    converted = quantised(data, kind)
    assert converted.scales.shape == converted.biases.shape == (12, 96 // GROUP)
    assert converted.weight.shape == (12, 96 * converted.bits // 32)
    np.testing.assert_allclose(converted.values(), quants.dequantize(data, kind), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_reads_them_so(kind: GGMLQuantizationType) -> None:
    converted = quantised(quants.quantize(matrix(), kind), kind)

    def read() -> np.ndarray:
        import mlx.core as mx

        weight, scales, biases = (mx.array(part) for part in converted[:3])
        return np.array(mx.dequantize(weight, scales, biases, group_size=GROUP, bits=converted.bits))

    np.testing.assert_allclose(mlx_model.shared_worker().call(read), converted.values(), rtol=1e-6, atol=1e-6)


def test_rows_of_heads_find_back() -> None:
    """llama.cpp's `LlamaModel.permute` in convert_hf_to_gguf.py, and back."""
    heads, rows = 3, 24
    original = matrix(rows, 32)
    permuted = original.reshape(heads, 2, rows // heads // 2, 32).swapaxes(1, 2).reshape(rows, 32)
    assert not np.array_equal(permuted, original)
    np.testing.assert_array_equal(permuted[head_order(rows, heads)], original)
    whole = Quantised(permuted, permuted, permuted, 4).rows(head_order(rows, heads))
    np.testing.assert_array_equal(whole.weight, original)


def test_unsupported_files_are_refused() -> None:
    with pytest.raises(ValueError, match="Q6_K"):
        quantised(np.zeros((1, 210), np.uint8), GGMLQuantizationType.Q6_K)
