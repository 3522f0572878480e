# SPDX-License-Identifier: Apache-2.0
"""JSON that only Python's parser reads is refused."""

from __future__ import annotations

from typing import Any

import pytest

from inference_bridge._calls import strict_json


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}', "1e999", "[-1e999]", "[1,]"])
def test_text_that_is_not_json_is_refused(text: str) -> None:
    for form in (text, text.encode()):
        with pytest.raises(ValueError):  # noqa: PT011 - the parser's own errors are right too
            strict_json.loads(form)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e308", 1e308), ("1e-999", 0.0), ("12345678901234567890", 12345678901234567890), ('"NaN"', "NaN")],
)
def test_numbers_that_a_float_holds_and_all_integers_are_read(text: str, value: Any) -> None:
    assert strict_json.loads(text) == value
