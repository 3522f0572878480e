# SPDX-License-Identifier: Apache-2.0
"""Whether a backend can run on this machine."""

from __future__ import annotations

from typing import NamedTuple


class Availability(NamedTuple):
    """Whether a backend can run on this machine.

    Attributes:
        ok: True if it can.
        reason: Why it cannot, as a sentence without a full stop.
        hint: What to do about it, for example the command that installs what is missing.
    """

    ok: bool
    reason: str = ""
    hint: str = ""

    def __bool__(self) -> bool:
        return self.ok
