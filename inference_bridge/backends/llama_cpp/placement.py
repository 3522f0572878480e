# SPDX-License-Identifier: Apache-2.0
"""The load options that decide on which devices, and in which form, a model's weights are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...options import LoadConfig


@dataclass(frozen=True, slots=True)
class Placement:
    """The fields of LoadConfig with these names. A field that is not set there has its default here."""

    gpu_layers: int = -1
    device: str = ""
    split_mode: str = "layer"
    tensor_split: tuple[float, ...] = ()
    deterministic: bool = False

    @classmethod
    def of(cls, config: LoadConfig) -> Placement:
        """Take the fields from a LoadConfig."""
        return cls(
            -1 if config.gpu_layers is None else config.gpu_layers,
            config.device or "",
            config.split_mode or "layer",
            tuple(config.tensor_split or ()),
            bool(config.deterministic),
        )

    @property
    def gpu_options(self) -> Mapping[str, Any]:
        """The options that only apply to GPUs and differ from their defaults, by name."""
        given = {"device": self.device, "split_mode": self.split_mode, "tensor_split": self.tensor_split}
        return {name: value for name, value in given.items() if value and value != "layer"}
