# SPDX-License-Identifier: Apache-2.0
"""The `mlx` and `metal` backends: MLX in this process."""

from __future__ import annotations
