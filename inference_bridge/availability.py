# SPDX-License-Identifier: Apache-2.0
"""Whether a backend can run on this machine."""

from __future__ import annotations

from typing import NamedTuple


class Availability(NamedTuple):
    """Whether a backend can run on this machine; if not, `reason` says why and `hint` what to do."""

    ok: bool
    reason: str = ""
    hint: str = ""

    def __bool__(self) -> bool:
        return self.ok
