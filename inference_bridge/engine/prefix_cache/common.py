# SPDX-License-Identifier: Apache-2.0
"""The longest common prefix of two sequences of tokens."""

from __future__ import annotations

from collections.abc import Sequence


def common_length(a: Sequence[int], b: Sequence[int], limit: int | None = None) -> int:
    """Return the length of the longest common prefix.

    Slices are compared instead of items, because a prompt may have a hundred thousand tokens.

    Args:
        a: A list or tuple.
        b: Another one of the same type.
        limit: The maximum to return.
    """
    most = min(len(a), len(b))
    limit = most if limit is None else min(limit, most)
    if a[:limit] == b[:limit]:
        return limit
    low, high = 0, limit  # a[:low] == b[:low], a[:high] != b[:high]
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
