# SPDX-License-Identifier: Apache-2.0
"""Suggestions in messages about unknown names: "did you mean …?"."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest that is known, or nothing."""
    import difflib

    folded = {one.lower(): one for one in known}
    return suggest(folded[match] for match in difflib.get_close_matches(name.lower(), folded, 1, 0.5))


def suggest(near: Iterable[str]) -> str:
    choice = " or ".join(repr(name) for name in near)
    return f": did you mean {choice}?" if choice else ""
