# SPDX-License-Identifier: Apache-2.0
"""How far the loading of a model is, from the engine that reads it to a program that shows it."""

from __future__ import annotations


class LoadProgress:
    """The part of each model file that has been loaded. Thread-safe."""

    def __init__(self) -> None:
        self._parts: dict[str, float] = {}

    def report(self, path: str, part: float) -> None:
        """Say how much of a file has been loaded.

        Args:
            path: The path of the file.
            part: From 0 to 1. At 1 the file is loaded, and forgotten here.
        """
        if part >= 1:
            self._parts.pop(path, None)
        else:
            self._parts[path] = part

    @property
    def part(self) -> float | None:
        """How much has been loaded, from 0 to 1, of the file whose loading began last; None if no engine says so."""
        return next(reversed(self._parts.copy().values()), None)


load_progress = LoadProgress()
"""The progress of the loads of this process."""
