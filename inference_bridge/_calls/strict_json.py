# SPDX-License-Identifier: Apache-2.0
"""Read JSON as RFC 8259 defines it. Python's parser also accepts NaN and Infinity, and makes large numbers infinite."""

from __future__ import annotations

import json
import math
from typing import Any


def loads(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The text, or its UTF-8.

    Raises:
        ValueError: The text is not JSON, or no 64-bit float holds one of its numbers.
        RecursionError: The text nests too many arrays and objects.
    """
    return json.loads(text, parse_constant=_refuse, parse_float=_finite)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number[:20]} is larger than any 64-bit floating-point number")
    return value
