# SPDX-License-Identifier: Apache-2.0
"""Load progress: an engine reports how much of a model file it has loaded, and a program can show it."""

from __future__ import annotations


class LoadProgress:
    """The part of each model file that has been loaded. Thread-safe."""

    def __init__(self) -> None:
        self._parts: dict[str, float] = {}

    def report(self, path: str, part: float) -> None:
        """Report how much of a file has been loaded.

        Args:
            path: The path of the file.
            part: From 0 to 1. At 1 the file is loaded, and no longer listed.
        """
        if part >= 1:
            self._parts.pop(path, None)
        else:
            self._parts[path] = part

    @property
    def part(self) -> float | None:
        """The loaded part, from 0 to 1, of the file whose loading began last. None if no engine reports a load."""
        return next(reversed(self._parts.copy().values()), None)


load_progress = LoadProgress()
"""The load progress of this process."""
