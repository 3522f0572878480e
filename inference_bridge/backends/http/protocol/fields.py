# SPDX-License-Identifier: Apache-2.0
"""Values in the JSON of requests and answers."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

NO_LOGPROBS = "log probabilities were asked for, and the answer has none"


def number(values: Mapping[str, Any], name: str) -> int:
    """Return the positive integer at `name`; 0 if there is none."""
    value = values.get(name)
    return value if type(value) is int and value > 0 else 0


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
