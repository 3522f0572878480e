# SPDX-License-Identifier: Apache-2.0
"""What a backend is: something that can say whether it runs here, and load a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from .availability import Availability
    from .model import TextModel
    from .options import LoadConfig


class Backend(ABC):
    """A way to run models. Instances are cheap: no engine is imported before `load_model`."""

    name: str
    """What stands before the colon in `name:model`: a Python identifier."""

    load_options: ClassVar[frozenset[str] | None] = None
    """The `LoadConfig` fields this backend honours; setting another is UnsupportedError.
    None: `load_model` checks by itself."""

    capabilities: ClassVar[frozenset[str]] = frozenset()
    """What its models may be able to do, as far as that is known before one is loaded."""

    formats: ClassVar[frozenset[str] | None] = None
    """Which of the discovered models it can load, where the format ("gguf", "mlx") alone says it: `can_load` is
    then not asked about each of thousands that are listed. None: it is."""

    only_when_named: ClassVar[bool] = False
    """True keeps the backend out of the default choice: `name:` must ask for it."""

    @abstractmethod
    def availability(self) -> Availability:
        """Whether it can run here. Cheap, imports no engine, never raises."""

    @abstractmethod
    def can_load(self, source: str) -> bool:
        """Whether `source` (a path or URL) is of a form this backend reads; its weights are not read."""

    def prefetch(self, source: str) -> None:  # noqa: B027 - few have anything to do here
        """Begin with what `load_model(source)` will wait for, beside whatever the caller does before it asks for that.

        `source` is the path of a model that discovery found, without a problem. What fails is told by `load_model`. If
        that never comes, what was begun ends with the process at the latest.
        """

    @abstractmethod
    def load_model(self, source: str, config: LoadConfig) -> TextModel:
        """Load `source`. Raises ModelNotFoundError, ModelLoadError or UnsupportedError."""
