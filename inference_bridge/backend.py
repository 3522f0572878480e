# SPDX-License-Identifier: Apache-2.0
"""The interface of a backend, which says whether it can run on this machine, and loads models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from .availability import Availability
    from .model import TextModel
    from .options import LoadConfig


class Backend(ABC):
    """Loads models with one engine. Creating an instance is cheap: `load_model` imports the engine, nothing earlier."""

    name: str
    """The part before the colon in `name:model`. It is a Python identifier."""

    load_options: ClassVar[frozenset[str] | None] = None
    """The `LoadConfig` fields that this backend supports. Setting another raises UnsupportedError.
    None: the backend's own `load_model` checks the fields."""

    capabilities: ClassVar[frozenset[str]] = frozenset()
    """The capabilities that models of this backend can have, if this is known before a model is loaded."""

    formats: ClassVar[frozenset[str] | None] = None
    """The formats ("gguf", "mlx") of discovered models that this backend can load, if the format alone decides. A list
    of thousands of models then needs no call of `can_load`. None: `can_load` decides for each model."""

    only_when_named: ClassVar[bool] = False
    """True: the backend is used only for sources that begin with its name, never by default."""

    @abstractmethod
    def availability(self) -> Availability:
        """Return whether this backend can run on this machine.

        The check is cheap, imports no engine and never raises.
        """

    @abstractmethod
    def can_load(self, source: str) -> bool:
        """Return whether this backend can load `source`.

        Args:
            source: A path, a URL or a name. Only its form and the file's headers are read, never the weights.
        """

    @abstractmethod
    def load_model(self, source: str, config: LoadConfig) -> TextModel:
        """Load a model.

        Args:
            source: A path, a URL, or a name that only this backend understands.
            config: The load options. Fields that are None were not set.

        Raises:
            ModelNotFoundError: The model does not exist.
            ModelLoadError: The model exists but cannot be loaded.
            UnsupportedError: A load option is not supported.
        """
