# SPDX-License-Identifier: Apache-2.0
"""The groups of tests that race with what most models can't do: ranking documents and filling in the middle.

A subclass sets `source`, or defines `load`. Each checks that the capability is there: a model without it would pass.
"""

from __future__ import annotations

from inference_bridge.testing.lifecycle.racing import Racing

FILL_NAMES = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
"""The special tokens that a model needs for infilling."""


class RankingBesideClose(Racing):
    __test__ = False

    def test_it_races_with_ranking(self) -> None:
        model = self.load()
        assert {"rerank", "rerank of many documents"} <= self._operations(model).keys()
        assert {"arerank", "arerank of many documents"} <= self._aoperations(model).keys()


class InfillingBesideClose(Racing):
    __test__ = False

    def test_it_races_with_infilling(self) -> None:
        model = self.load()
        assert {"infill", "infill of a long text", "infill, half read"} <= self._operations(model).keys()
        assert {"ainfill", "ainfill of a long text", "ainfill, half read"} <= self._aoperations(model).keys()
