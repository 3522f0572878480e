# SPDX-License-Identifier: Apache-2.0
"""Which devices a model's weights are put on, and in which form: what the load options say of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...options import LoadConfig


@dataclass(frozen=True, slots=True)
class Placement:
    """LoadConfig's fields of these names, with the defaults in place of those that were not set."""

    gpu_layers: int = -1
    device: str = ""
    split_mode: str = "layer"
    tensor_split: tuple[float, ...] = ()
    deterministic: bool = False

    @classmethod
    def of(cls, config: LoadConfig) -> Placement:
        """What a load with `config` wants."""
        return cls(
            -1 if config.gpu_layers is None else config.gpu_layers,
            config.device or "",
            config.split_mode or "layer",
            tuple(config.tensor_split or ()),
            bool(config.deterministic),
        )

    @property
    def of_gpus(self) -> Mapping[str, Any]:
        """The options that only mean something where there are GPUs, as far as they were set."""
        given = {"device": self.device, "split_mode": self.split_mode, "tensor_split": self.tensor_split}
        return {name: value for name, value in given.items() if value and value != "layer"}
