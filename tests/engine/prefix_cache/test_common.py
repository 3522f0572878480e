# SPDX-License-Identifier: Apache-2.0
"""The length of the longest common prefix."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference_bridge.engine.prefix_cache.common import common_length

tokens = st.lists(st.integers(0, 2), max_size=12)


@given(tokens, tokens, tokens, st.none() | st.integers(0, 30))
def test_common_length_counts_equal_leading_tokens(
    begin: list[int], a: list[int], b: list[int], limit: int | None
) -> None:
    one, other = begin + a, begin + b
    expected = 0
    while expected < min(len(one), len(other)) and one[expected] == other[expected]:
        expected += 1
    expected = expected if limit is None else min(expected, limit)
    assert common_length(one, other, limit) == common_length(tuple(other), tuple(one), limit) == expected
