# SPDX-License-Identifier: Apache-2.0
"""The table of model families in the documentation agrees with the behaviour of the parsers."""

from __future__ import annotations

import pytest

from tests.parts.chat_forms import FORMS
from tests.parts.family_table import PAGE, on_page, table

pytest.importorskip("jinja2")


def test_the_table_in_the_documentation_is_current() -> None:
    made = table()
    assert on_page(PAGE.read_text(encoding="utf-8")) == made, "run: python -m tests.parts.family_table --write"
    assert "**no**" not in made
    assert made.count("\n") == len(FORMS) + 1
