# SPDX-License-Identifier: Apache-2.0
"""Suggestions in messages about unknown names: "did you mean …?"."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: ": did you mean 'x'?", or "" if no known name is alike."""
    import difflib

    folded = {one.lower(): one for one in known}
    return suggest(folded[match] for match in difflib.get_close_matches(name.lower(), folded, 1, 0.5))


def suggest(near: Iterable[str]) -> str:
    """Return ": did you mean 'a' or 'b'?" for the names in `near`, or "" if there are none."""
    choice = " or ".join(repr(name) for name in near)
    return f": did you mean {choice}?" if choice else ""
