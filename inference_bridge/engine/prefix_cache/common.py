# SPDX-License-Identifier: Apache-2.0
"""What two sequences of tokens have in common."""

from __future__ import annotations

from collections.abc import Sequence


def common_length(a: Sequence[int], b: Sequence[int], limit: int | None = None) -> int:
    """How many first items are the same, at most `limit`. Both are lists, or both are tuples.

    Slices are compared, not items: a prompt may have a hundred thousand.
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
