# SPDX-License-Identifier: Apache-2.0
"""A value that stands between tags is read as what its parameter's schema says."""

from __future__ import annotations

import ast
import json
import warnings
from typing import Any

import pytest

from inference_bridge.chat.values import item_schema, property_schema, schema_types, typed

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


TEXT: dict[str, Any] = {"type": "string"}
# Schemas of a call's arguments: the parameter "zip" is a string in each, so its value "01234" is not a number.
SCHEMAS: dict[str, dict[str, Any]] = {
    "escaped slash": {"properties": {"zip": {"$ref": "#/$defs/a~1b"}}, "$defs": {"a/b": TEXT}},
    "escaped tilde": {"properties": {"zip": {"$ref": "#/$defs/a~0b"}}, "$defs": {"a~b": TEXT}},
    "escapes are decoded once": {"properties": {"zip": {"$ref": "#/$defs/a~01"}}, "$defs": {"a~1": TEXT}},
    "percent-encoded": {"properties": {"zip": {"$ref": "#/$defs/Caf%C3%A9%20%25"}}, "$defs": {"Café %": TEXT}},
    "percent-encoded escape": {"properties": {"zip": {"$ref": "#/%24defs/a%7E1b"}}, "$defs": {"a/b": TEXT}},
    "encoded slash": {"properties": {"zip": {"$ref": "#/$defs%2Fa"}}, "$defs": {"a": TEXT}},
    "item of a list": {"properties": {"zip": {"$ref": "#/$defs/a/anyOf/1"}}, "$defs": {"a": {"anyOf": [True, TEXT]}}},
    "with the schema's address": {
        "$id": "https://example.com/s#",
        "properties": {"zip": {"$ref": "https://example.com/s#/$defs/a"}},
        "$defs": {"a": TEXT},
    },
    "reference to a reference": {
        "properties": {"zip": {"$ref": "#/$defs/a"}},
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": TEXT},
    },
    "the arguments are a reference": {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"zip": TEXT}}}},
    "the arguments have parts": {
        "allOf": [{"properties": {"other": {}}}, {"$ref": "#/$defs/a"}],
        "$defs": {"a": {"properties": {"zip": TEXT}}},
    },
    "the arguments are one of several": {"oneOf": [{"properties": {"zip": TEXT}}, {"properties": {"zip": TEXT}}]},
    "any other argument": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"additionalProperties": {"$ref": "#/$defs/b"}}, "b": TEXT},
    },
    "refers to itself": {"properties": {"zip": {"anyOf": [{"$ref": "#/properties/zip"}] * 20 + [TEXT]}}},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_type_of_a_parameter_is_found(name: str) -> None:
    schema = SCHEMAS[name]
    assert schema_types(property_schema(schema, "zip", schema), schema) == {"string"}


@pytest.mark.parametrize(
    "reference",
    ["#/$defs/a~2b", "#/$defs/none", "#/$defs/list/9", "#/$defs/list/-1", "#/$defs/list/x", "other.json#/a", "#a"],
)
def test_a_reference_to_nothing_states_no_type(reference: str) -> None:
    schema = {"properties": {"zip": {"$ref": reference}}, "$defs": {"list": [TEXT]}}
    assert schema_types(property_schema(schema, "zip", schema), schema) == set()


def test_items_of_a_list_that_is_a_reference_are_found() -> None:
    root = {"$defs": {"rows": {"type": "array", "items": {"$ref": "#/$defs/a~1b"}}, "a/b": TEXT}}
    assert schema_types(item_schema({"$ref": "#/$defs/rows"}, root), root) == {"string"}
    assert item_schema({"items": [TEXT]}, root) is None
