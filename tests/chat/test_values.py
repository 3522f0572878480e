# SPDX-License-Identifier: Apache-2.0
"""A value that stands between tags is read as what its parameter's schema says."""

from __future__ import annotations

import ast
import json
import warnings
from typing import Any

import pytest

from inference_bridge.chat.values import typed

# What Python's parser warns about, and texts around which it must not.
LITERALS: dict[str, Any] = {
    r'"C:\dir"': r"C:\dir",
    r"['C:\dir', 'D:\path']": [r"C:\dir", r"D:\path"],
    r"'\é\(\ \n'": "\\é\\(\\ \n",
    r"'\400 \777 \101'": "\u0100 \u01ff A",
    r"""['it\'s \d', "a'\d"]""": [r"it's \d", r"a'\d"],
    r"'''a'\d\''''": r"a'\d'",
    r"[r'\d', '\\d', u'\d']": [r"\d", r"\d", r"\d"],
    "{'a': 1, # it's\n 'b': '\\d'}": {"a": 1, "b": r"\d"},
    "(True, None, -1.5e-3, 0x1f, 1_000)": [True, None, -1.5e-3, 31, 1000],
}
TEXTS = [
    "2or 3",
    "1if 2else 3",
    "[1in x]",
    "0x1for x",
    "1jif x",
    'f"{2or 3}"',
    r"b'\d'",
    r"rb'\d'",
    r'"C:\dir',
    "\\",
    "",
]


@pytest.mark.parametrize("text", LITERALS)
def test_a_python_literal_is_read_without_a_warning(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = json.loads(json.dumps(ast.literal_eval(text)))
    assert value == LITERALS[text]
    with warnings.catch_warnings(record=True) as written:
        warnings.simplefilter("always")
        assert json.loads(typed(text, set(), True)) == value
    assert written == []


@pytest.mark.parametrize("text", TEXTS)
def test_text_that_is_no_literal_stays_text_without_a_warning(text: str) -> None:
    with warnings.catch_warnings(record=True) as written:
        warnings.simplefilter("always")
        assert json.loads(typed(text, set(), True)) == text
    assert written == []
