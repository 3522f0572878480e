# SPDX-License-Identifier: Apache-2.0
"""The texts that a schema's grammar accepts: examples, and outputs of a random model."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import json
import random
import re
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest

from inference_bridge import UnsupportedError
from inference_bridge.grammar.grammar import Grammar, answer_grammar
from inference_bridge.grammar.json_formats import STRINGS
from inference_bridge.grammar.json_schema import json_grammar
from inference_bridge.grammar.patterns import regex
from tests.parts.models.byte_model import ByteTokens, vocabulary, walk
from tests.parts.schemas.random import random_schema

TOKENS = ByteTokens()
VOCABULARY = vocabulary(TOKENS)

Schema = dict[str, Any] | bool


def grammar_of(schema: Schema) -> Grammar:
    grammar = answer_grammar(VOCABULARY, schema, backend="engine")
    assert grammar is not None
    return grammar


def accepts(schema: Schema, text: str) -> bool:
    """Whether the text is a complete answer."""
    from inference_bridge import GenerationError

    grammar = grammar_of(schema)
    try:
        for byte in text.encode():
            grammar.accept(byte)
        grammar.accept(TOKENS.eos_token_id)
    except GenerationError:
        return False
    return True


def said(schema: Schema, count: int, *, limit: int = 300, seed: int = 0) -> list[Any]:
    """Values that satisfy the schema to the grammar. Few of them, if it lets the model ramble."""
    rng = random.Random(seed)
    texts = [walk(grammar_of(schema), rng, TOKENS, limit=limit) for _ in range(count)]
    return [json.loads(TOKENS.read(text)) for text in texts if text is not None]


def object_of(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), **more}


# ---------------------------------------------------------------- keywords, one by one

BOOL, NULL = {"type": "boolean"}, {"type": "null"}
SHORT = {"type": "string", "maxLength": 3}

KEYWORDS: dict[str, tuple[Schema, list[str], list[str]]] = {
    "anything": (True, ["1", '"a"', '{"a":[null,true]}'], ["", "a", "[1,]", '{"a" :1}']),
    "type": ({"type": "boolean"}, ["true", "false"], ["1", '"true"', "null", "True"]),
    "types": ({"type": ["string", "null"]}, ['"a"', "null"], ["1", "true"]),
    "integer": ({"type": "integer"}, ["0", "-12", "100"], ["1.5", "01", "1e3", "+1"]),
    "number": ({"type": "number"}, ["0", "-1.5", "2e-3"], [".5", "1.", "NaN", "Infinity"]),
    "string": ({"type": "string"}, ['"a\\"\\\\\\n"', '"é漢😀"'], ['"a', "'a'", '"\n"', '"\\u0061"', '"\\/"']),
    "const": ({"const": {"b": [1, None, True], "a": "x"}}, ['{"b":[1,null,true],"a":"x"}'], ['{"a":"x"}', "{}"]),
    "const of a number": ({"const": -0.5}, ["-0.5"], ["0.5", "-0.51", "-1"]),
    "const of text": ({"const": 'a"b\\c\né'}, ['"a\\"b\\\\c\\né"'], ['"a"', '"a\\"b\\\\c\\ne"']),
    "enum": ({"enum": ["a", 1, None, [2]]}, ['"a"', "1", "null", "[2]"], ['"b"', "2", "[]", "true"]),
    "enum and type": ({"type": "string", "enum": ["a", 1, "bb"], "minLength": 2}, ['"bb"'], ['"a"', "1"]),
    "minLength": ({"type": "string", "minLength": 2}, ['"ab"', '"漢字"'], ['"a"', '"漢"']),
    "maxLength": ({"type": "string", "maxLength": 2}, ['""', '"\\n😀"'], ['"abc"']),
    "pattern": ({"type": "string", "pattern": "^[a-c]+\\d?$"}, ['"abc1"'], ['"d"', '"a12"', '""']),
    "pattern anywhere": ({"type": "string", "pattern": "xy", "maxLength": 5}, ['"axyb"'], ['"x"', '"yx"']),
    "pattern, either anchor": (
        {"type": "string", "pattern": "^a|b$", "maxLength": 5},
        ['"ac"', '"cb"'],
        ['"ca"', '"bc"'],
    ),
    "minimum": ({"type": "integer", "minimum": -5}, ["-5", "100"], ["-6", "-10"]),
    "bounds beyond what is exact": (
        {"type": "integer", "minimum": -(2**60), "exclusiveMaximum": 2.0**60},
        ["-5", str(2**53 - 1), str(1 - 2**53)],
        [str(2**53 + 1)],
    ),
    "maximum": ({"type": "number", "maximum": 2.5}, ["2.5", "2", "-90.1"], ["2.51", "3", "2.6"]),
    "exclusiveMinimum": ({"type": "integer", "exclusiveMinimum": 5}, ["6"], ["5", "4"]),
    "exclusiveMaximum": ({"type": "number", "exclusiveMaximum": 5}, ["4.9", "-1"], ["5", "5.0", "5.1"]),
    "exclusive, in draft 4": ({"type": "integer", "minimum": 5, "exclusiveMinimum": True}, ["6"], ["5"]),
    "inclusive, in draft 4": ({"type": "integer", "minimum": 5, "exclusiveMinimum": False}, ["5"], ["4"]),
    "above 0, and small": ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, ["0.5", "0.01"], ["0", "0.6"]),
    "below 0, and small": ({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}, ["-0.5"], ["0", "-0", "-1"]),
    "multipleOf": ({"type": "integer", "multipleOf": 7}, ["0", "14", "-21"], ["1", "15"]),
    "multipleOf a fraction": ({"type": "number", "multipleOf": 0.25}, ["0.25", "1.50", "3"], ["0.3", "0.10"]),
    "int32": ({"type": "integer", "format": "int32"}, ["2147483647"], ["2147483648"]),
    "items": ({"type": "array", "items": BOOL}, ["[]", "[true,false]"], ["[1]", "[true,null]"]),
    "minItems": ({"type": "array", "items": BOOL, "minItems": 1}, ["[true]"], ["[]"]),
    "maxItems": ({"type": "array", "items": BOOL, "maxItems": 1}, ["[]", "[true]"], ["[true,true]"]),
    "prefixItems": ({"prefixItems": [BOOL, NULL], "items": False, "type": "array"}, ["[true,null]", "[]"], ["[null]"]),
    "prefixItems and items": (
        {"prefixItems": [BOOL], "items": NULL, "type": "array"},
        ["[true,null,null]"],
        ["[true,true]", "[null]"],
    ),
    "items, until draft 2019-09": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "array",
            "items": [BOOL],
            "additionalItems": NULL,
        },
        ["[true,null]"],
        ["[null]", "[true,true]"],
    ),
    "properties": (
        object_of({"a": BOOL, "b": NULL}, "b"),
        ['{"a":true,"b":null}', '{"b":null}'],
        ["{}", '{"a":true}', '{"b":1}', '{"b":null,"a":true}'],
    ),
    "additionalProperties": (
        {"type": "object", "properties": {"a": BOOL}, "additionalProperties": NULL},
        ['{"a":true,"z":null}', '{"z":null}'],
        ['{"z":1}', '{"a":null}', '{"\\u0061":null}', '{"z":null,"a":null}'],
    ),
    "additionalProperties, none": (object_of({"a": BOOL}, additionalProperties=False), ["{}"], ['{"z":1}']),
    "required, of no properties": (
        {"type": "object", "required": ["z"], "additionalProperties": NULL},
        ['{"z":null}', '{"z":null,"y":null}'],
        ["{}", '{"z":1}'],
    ),
    "patternProperties": (
        {"type": "object", "patternProperties": {"^x": BOOL}, "additionalProperties": NULL},
        ['{"xa":true,"y":null}'],
        ['{"xa":null}', '{"y":true}'],
    ),
    "patternProperties and properties": (
        {"type": "object", "patternProperties": {"^x": BOOL}, "properties": {"xa": {"enum": [True, 1]}}},
        ['{"xa":true}'],
        ['{"xa":1}', '{"xa":false}'],
    ),
    "propertyNames of an enum": (
        {"type": "object", "propertyNames": {"$ref": "#/$defs/n"}, "$defs": {"n": {"enum": ["a", "b"]}}},
        ["{}", '{"a":1,"b":null}'],
        ['{"c":1}'],
    ),
    "propertyNames of any text": (
        object_of({"a": BOOL}, propertyNames={"type": "string"}),
        ['{"a":true}'],
        ['{"b":1}'],
    ),
    "propertyNames of a pattern": ({"type": "object", "propertyNames": {"pattern": "^a"}}, ['{"ab":1}'], ['{"b":1}']),
    "propertyNames of a length": ({"type": "object", "propertyNames": {"maxLength": 1}}, ['{"a":1}'], ['{"ab":1}']),
    "propertyNames of a format": (
        {"type": "object", "propertyNames": {"format": "date"}, "additionalProperties": BOOL},
        ['{"2024-02-29":true}'],
        ['{"a":true}', '{"2024-02-29":1}'],
    ),
    "minProperties": ({"type": "object", "minProperties": 1}, ['{"a":1}'], ["{}"]),
    "minProperties of those named": (object_of({"a": NULL, "b": NULL}, minProperties=1), ['{"b":null}'], ["{}"]),
    "maxProperties": ({"type": "object", "maxProperties": 1}, ["{}", '{"a":1}'], ['{"a":1,"b":1}']),
    "allOf": (
        {"allOf": [object_of({"a": BOOL}, "a"), object_of({"b": NULL}, "b")]},
        ['{"a":true,"b":null}'],
        ['{"a":true}', '{"b":null}', "1"],
    ),
    "anyOf": ({"anyOf": [{"type": "integer", "minimum": 5}, BOOL]}, ["5", "true"], ["4", "null"]),
    "anyOf of what is required": (
        object_of({"a": NULL, "b": NULL}, anyOf=[{"required": ["a"]}, {"required": ["b"]}]),
        ['{"a":null}', '{"b":null}', '{"a":null,"b":null}'],
        ["{}"],
    ),
    "oneOf": ({"oneOf": [{"type": "integer"}, BOOL, {"const": "a"}]}, ["5", "true", '"a"'], ["null", '"b"']),
    "$ref": (
        {"$ref": "#/$defs/t", "$defs": {"t": object_of({"c": {"$ref": "#/$defs/t"}, "v": BOOL}, "v")}},
        ['{"v":true}', '{"c":{"c":{"v":true},"v":true},"v":false}'],
        ["{}", '{"c":{},"v":true}'],
    ),
    "$ref to the whole": (object_of({"c": {"type": "array", "items": {"$ref": "#"}}}), ['{"c":[{"c":[]}]}'], ["[]"]),
    "$ref with a description": (
        object_of({"c": {"$ref": "#", "description": "the rest", "default": None}}),
        ['{"c":{"c":{}}}'],
        ['{"c":1}'],
    ),
    "$ref to a place": (object_of({"a": BOOL, "b": {"$ref": "#/properties/a"}}), ['{"b":true}'], ['{"b":1}']),
    "$ref into a list": (
        {"anyOf": [object_of({"a": {"$ref": "#/anyOf/1"}}), NULL]},
        ['{"a":null}', "null"],
        ['{"a":{}}'],
    ),
    "$ref to a boolean": (object_of({"a": {"$ref": "#/$defs/any"}}, **{"$defs": {"any": True}}), ['{"a":[1]}'], ["1"]),
    "not nullable": ({"type": "boolean", "nullable": False}, ["true"], ["null"]),
    "$ref with an encoded slash": ({"$ref": "#/%24defs%2Fa", "$defs": {"a": BOOL}}, ["true"], ["1"]),
    "$ref with escapes": ({"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": BOOL}}, ["true"], ["1"]),
    "$ref with the address": ({"$id": "urn:s", "$ref": "urn:s#/$defs/a", "$defs": {"a": BOOL}}, ["true"], ["1"]),
    "annotations": (
        {"type": "boolean", "title": "t", "default": 1, "examples": [2], "deprecated": True, "x-order": 3},
        ["true"],
        ["1"],
    ),
    "loosening itself": ({"type": "boolean", "x-guidance": {"lenient": True}}, ["true"], [" true", "1"]),
}


@pytest.mark.parametrize("name", KEYWORDS)
def test_each_keyword_holds(name: str) -> None:
    schema, right, wrong = KEYWORDS[name]
    assert [text for text in right if not accepts(schema, text)] == []
    assert [text for text in wrong if accepts(schema, text)] == []


@pytest.mark.parametrize("name", KEYWORDS)
def test_random_outputs_satisfy_the_schema(name: str) -> None:
    schema = KEYWORDS[name][0]
    values = said(schema, 10)
    assert values
    if "draft 4" not in name and "the address" not in name:
        for value in values:
            jsonschema.validate(value, schema)


def test_keywords_after_combinations_count() -> None:
    schema = {"minimum": 5, "enum": [5, 6], "exclusiveMinimum": True, "type": "integer"}
    assert (accepts(schema, "6"), accepts(schema, "5")) == (True, False)


def test_an_object_without_additional_properties_accepts_only_named_ones() -> None:
    named = object_of({"a": BOOL})
    assert not accepts(named, '{"z":1}')
    assert accepts(named | {"additionalProperties": True}, '{"z":1}')
    assert accepts({"type": "object"}, '{"z":1}')
    assert not accepts({"allOf": [named, object_of({"b": BOOL})]}, '{"a":true,"b":true,"z":1}')
    assert accepts({"allOf": [named, {"type": "object", "additionalProperties": True}]}, '{"z":1}')
    assert not accepts({"$ref": "#/$defs/n", "$defs": {"n": named}}, '{"z":1}')
    assert accepts({"$ref": "#/$defs/n", "$defs": {"n": named}, "required": ["z"]}, '{"z":1}')


def test_arguments_may_be_spaced() -> None:
    text = json_grammar({"type": "array", "items": BOOL}, what="it", backend="engine", spaced=True)
    grammar = VOCABULARY.grammar(lambda _: f"start: {text}")
    for byte in b"[true, false]":
        grammar.accept(byte)
    assert grammar.finished


# ---------------------------------------------------------------- schemas written by pydantic

CAT = object_of({"kind": {"const": "cat", "default": "cat", "type": "string"}, "lives": {"type": "integer"}}, "lives")
DOG = object_of({"kind": {"const": "dog", "type": "string"}, "friend": {"anyOf": [{"$ref": "#/$defs/Pet"}, NULL]}})
PETS: dict[str, Any] = {
    "$defs": {
        "Cat": CAT,
        "Dog": DOG,
        "Pet": {
            "discriminator": {"mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}, "propertyName": "kind"},
            "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        },
    },
    "$ref": "#/$defs/Pet",
}


def test_a_discriminator_is_always_there() -> None:
    assert accepts(PETS, '{"kind":"cat","lives":9}')
    assert accepts(PETS, '{"kind":"dog","friend":{"kind":"dog","friend":null}}')
    assert not accepts(PETS, '{"lives":9}')
    assert not accepts(PETS, '{"kind":"dog","lives":9}')


def test_options_of_one_of_are_distinguished_by_a_tag() -> None:
    schema = {"oneOf": [object_of({"t": {"enum": ["a", "b"]}, "x": BOOL}), object_of({"t": {"const": "c"}})]}
    assert accepts(schema, '{"t":"a","x":true}')
    assert accepts(schema, '{"t":"c"}')
    assert not accepts(schema, "{}"), "it satisfies both"
    mixed = {"oneOf": [{"$ref": "#/$defs/a"}, NULL, {"type": "string"}], "$defs": {"a": object_of({"t": BOOL})}}
    assert [accepts(mixed, text) for text in ("{}", "null", '"a"', "1")] == [True, True, True, False]


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"oneOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object"},
        {"oneOf": [object_of({"a": BOOL}), object_of({"b": BOOL})]},
        {"oneOf": [object_of({"a": {"const": 1}}), {"properties": {"a": {"const": 2}}}]},
        {"oneOf": [{"const": 1}, {"enum": [1.0, 2]}]},
        {"oneOf": [{"type": "string"}, True]},
    ],
)
def test_options_that_overlap_are_refused(schema: Schema) -> None:
    with pytest.raises(UnsupportedError, match="'oneOf': at # of json_schema: its options may overlap"):
        grammar_of(schema)


def test_options_are_compared_as_json() -> None:
    grammar_of({"oneOf": [{"const": 1}, {"const": True}]})  # which are equal in Python


def test_an_unsatisfiable_option_does_not_overlap_with_others() -> None:
    assert accepts({"oneOf": [False, {"type": "integer"}, BOOL]}, "5")


# ---------------------------------------------------------------- refusals

REFUSED: list[tuple[Schema, str]] = [
    *(
        (
            {"type": "object", "properties": {"a/b": {key: value}}},
            re.escape(f"'{key}': at #/properties/a~1b of json_schema"),
        )
        for key, value in {
            "not": {},
            "if": {},
            "contains": {},
            "uniqueItems": True,
            "dependentRequired": {"a": ["b"]},
            "dependentSchemas": {},
            "dependencies": {},
            "unevaluatedProperties": False,
            "unevaluatedItems": False,
            "$dynamicRef": "#a",
            "$ref": "other.json",
            "format": "phone",
            "pattern": "a(?=b)c",
            "minimum": 1e300,
            "multipleOf": 1e300,
            "$id": "other.json",
        }.items()
    ),
    ({"type": "string", "pattern": "(a)\\1"}, "'pattern': at # of json_schema: .*backreferences are not supported"),
    ({"type": "string", "pattern": "[a--b]"}, "'pattern': at # of json_schema"),
    ({"type": "object", "patternProperties": {"^a": {}, "b$": {}}}, "'patternProperties': .*not disjoint"),
    ({"type": "object", "minProperties": 2}, "'minProperties': at #"),
    (object_of({"a": {}, "b": {}, "c": {}}, maxProperties=2), "'maxProperties': at #"),
    ({"type": "object", "propertyNames": {"pattern": "a", "maxLength": 3}}, "'propertyNames': at #"),
    ({"type": "object", "propertyNames": {"enum": ["a", "b"], "const": "a"}}, "'propertyNames': at #"),
    (object_of({"a": {}}, propertyNames={"pattern": "b"}), "'propertyNames': at #"),
    ({"const": 2**53}, "'const': at #/const"),
    ({"enum": ["a", [1e16]]}, "'enum': at #/enum/1"),
    ({"const": "\x01"}, "'const': .*control characters"),
    ({"const": "\ud800"}, "'const': .*Unicode text"),
    (object_of({"c": {"$ref": "#", "type": "object"}}), "this json_schema: circular .*: #"),
]


@pytest.mark.parametrize(("schema", "message"), REFUSED)
def test_unsupported_keywords_are_refused(schema: Schema, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        grammar_of(schema)
    assert str(caught.value).startswith("engine does not support ")


INVALID: list[tuple[Any, str]] = [
    ({"type": "string", "minLenght": 3}, "# has an unknown keyword 'minLenght': did you mean 'minLength'?"),
    ({"type": "strin"}, "#/type has an unknown type: \"strin\": did you mean 'string'?"),
    ({"type": []}, "#/type names no type"),
    ({"properties": []}, "#/properties must be an object, not []"),
    ({"properties": {"a": 1}}, "#/properties/a must be an object or a boolean, not 1"),
    ({"items": None}, "#/items must be an object or a boolean, not null"),
    ({"items": [{}], "prefixItems": [{}]}, "#/items must be a schema, not a list, if there is prefixItems"),
    ({"required": "a"}, '#/required must be a list, not "a"'),
    ({"required": [{}]}, "#/required must be a list of strings"),
    ({"maxLength": -1}, "#/maxLength must not be negative, but is -1"),
    ({"maxLength": True}, "#/maxLength must be an integer, not true"),
    ({"minimum": "1"}, '#/minimum must be a number, not "1"'),
    ({"multipleOf": 0}, "#/multipleOf must be above 0, not 0"),
    ({"anyOf": []}, "#/anyOf must not be empty"),
    ({"allOf": 5}, "#/allOf must be a list, not 5"),
    ({"oneOf": [{"type": ["strin"]}, {"type": [{}]}]}, '#/oneOf/0/type has an unknown type: "strin"'),
    ({"$ref": "#/$defs/a"}, "#/$ref refers to '#/$defs/a', which does not exist"),
    ({"$ref": 1}, "#/$ref must be a string, not 1"),
    ({"$ref": "#"}, "# has a $ref that leads back to itself"),
    (
        {
            "oneOf": [{"$ref": "#/$defs/a"}, NULL],
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        },
        "# has a $ref that leads back to itself",
    ),
    (object_of({"\ud800": {}}), "#/properties has a key that is not valid Unicode text"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}, "# has a $ref that leads back"),
    (False, "nothing satisfies the schema false"),
    ({"enum": []}, "nothing satisfies this schema"),
    ({"type": "string", "minLength": 2, "maxLength": 1}, "nothing satisfies this schema"),
    (object_of({"a": False}, "a"), "nothing satisfies this schema"),
    ({"const": float("nan")}, "json_schema is not JSON"),
]


@pytest.mark.parametrize(("schema", "message"), INVALID)
def test_an_invalid_schema_is_a_value_error(schema: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        grammar_of(schema)


def test_a_value_that_is_not_json_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="json_schema is not JSON: Object of type set"):
        grammar_of({"enum": {1, 2}})
    endless: dict[str, Any] = {}
    endless["items"] = endless
    with pytest.raises(ValueError, match="json_schema"):
        grammar_of(endless)
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(ValueError, match="json_schema is nested too deeply"):
        grammar_of(deep)
    for _ in range(4300):
        deep = deep["items"]  # what json.dumps can write may still be too deep for us
    with pytest.raises(ValueError, match="json_schema is nested too deeply$"):
        grammar_of(deep)


def test_unused_definitions_are_not_checked() -> None:
    assert accepts({"type": "boolean", "$defs": {"unused": {"not": {}}}}, "true")


def test_schemas_that_grow_exponentially_are_compiled_or_refused() -> None:
    """Forty steps, each of which refers to the next one twice: 2**40 paths."""
    steps = {f"s{n}": {"allOf": [{"$ref": f"#/$defs/s{n + 1}"}] * 2} for n in range(40)}
    schema = {"$ref": "#/$defs/s0", "$defs": {**steps, "s40": BOOL}}
    with contextlib.suppress(UnsupportedError):  # there is a limit to what llguidance follows
        grammar_of(schema)
    nested: dict[str, Any] = object_of({"k": {"const": 0}})
    for n in range(1, 20):
        nested = {"oneOf": [object_of({"k": {"const": n}, "x": nested}), object_of({"k": {"const": -n}})]}
    assert accepts(nested, '{"k":-19}')


# ---------------------------------------------------------------- patterns

CHARACTERS = [*map(chr, range(32, 127)), *"\n\t\r\b\fé\u2028\x85\xa0٣漢😀"]
PATTERNS = """
    [^"] [^\\\\] [^"\\\\] [^a] . \\W \\D \\S \\w \\d \\s ["] [!-~] [\\x20-\\x7e] [^\\x00-\\x1f] [\\x00-!#-~] \\" \\\\
    [^\\n] [^/] / \\/ [^\\W\\d] [\\w.-] [^\\w] [^\\d] [^\\s] [\\W_] [^\\W] [\\s\\S] [[] [^[\\]] [a&&b] [~~x] [^-a]
    \\u0041 [^,\\s] (?:[^"]|a) (?:[^"\\n]|[\\t]) [-a] [^]a]
""".split()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_only_texts_that_python_s_re_matches(pattern: str) -> None:
    # Python has a leading bracket and doubled signs otherwise, or warns of them.
    same = {"[^]a]": "[^\\]a]", "[[]": "[\\[]", "[^[\\]]": "[^\\[\\]]", "[a&&b]": "[a&b]", "[~~x]": "[~x]"}
    if pattern == "[^]a]":
        with pytest.raises(ValueError, match="empty"):
            regex(pattern)
        return
    schema = {"type": "string", "pattern": f"^{pattern}$"}
    grammar_of(schema)
    taken = {char for char in CHARACTERS if accepts(schema, json.dumps(char, ensure_ascii=False))}
    expected = {char for char in CHARACTERS if re.fullmatch(same.get(pattern, pattern), char)}
    assert taken <= expected
    ascii = {char for char in expected if char.isascii()}
    assert ascii <= taken, "nothing is lost"


@pytest.mark.parametrize("pattern", ["a\\", "[a", "[]", "[^]", "^{1,3}$", "a$*", "\\b+"])
def test_patterns_that_break_off(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"backslash|not closed|empty|has nothing to repeat"):
        regex(pattern)


@pytest.mark.parametrize("step", [0.7, 12.34, 0.01])
def test_a_multiple_of_a_fraction_has_no_more_digits_than_a_double(step: float) -> None:
    schema = {"type": "number", "multipleOf": step}
    assert accepts(schema, str(step))
    assert not accepts(schema, str(10**19 * Decimal(str(step))))
    for value in said(schema, 20):
        assert Decimal(repr(value)) % Decimal(repr(step)) == 0


# ---------------------------------------------------------------- formats

FORMATS: dict[str, tuple[list[str], list[str]]] = {
    "date": (["2024-02-29", "2000-02-29", "0001-01-01"], ["2023-02-29", "1900-02-29", "0000-01-01", "2024-13-01"]),
    "time": (["12:30:00Z", "23:59:59.25+05:30"], ["12:30", "24:00:00Z", "12:30:60Z"]),
    "date-time": (["2024-02-29T12:30:00Z"], ["2023-02-29T12:30:00Z", "2024-02-29 12:30:00Z", "2024-02-29"]),
    "duration": (["P1Y2M3DT4H5M6S", "P2W", "PT1S"], ["P", "PT", "1D", "P1Y2W", "P1000000000000D"]),
    "ipv4network": (["10.0.0.0/8", "1.2.3.0/24", "1.2.3.4", "1.2.3.4/32"], ["1.2.3.4/24", "1.2.3/24", "0.0.0.0/33"]),
    "ipv6network": (["::1", "fe80::/64", "::/0"], ["fe80::1/64", "1.2.3.4"]),
    "ipv4interface": (["1.2.3.4/24", "1.2.3.4"], ["1.2.3.4/33"]),
    "ipv6interface": (["::1/64", "::1"], ["::1/129"]),
    "ipvanyaddress": (["1.2.3.4", "::1"], ["1.2.3"]),
    "email": (["a.b+c@example.org"], ["a@", "@b", "a..b@c.d", "a b@c.d"]),
    "hostname": (["example.org", "a-b"], ["-a", "a_b", "a..b", ""]),
    "ipv4": (["127.0.0.1", "255.255.255.255"], ["256.0.0.1", "1.2.3", "01.2.3.4"]),
    "ipv6": (["::1", "1::", "1:2:3:4:5:6:7:8", "fe80::a:b"], ["1:2:3:4:5:6:7", "1::2::3", ":::", "1:2:3:4:5:6:7:8:9"]),
    "uri": (["https://a.example:80/b?c#d", "mailto:a@b.c", "file:///a", "http://[::1]/"], ["/a", "a b:c", "http://"]),
    "uuid": (["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000"]),
    "uuid4": (["123e4567-e89b-42d3-a456-426614174000"], ["123e4567-e89b-12d3-a456-426614174000"]),
    "json-pointer": (["", "/a~1b/0"], ["a", "/~2"]),
    "byte": (["", "YQ==", "YWI=", "YWJj"], ["YQ", "YR==", "Y-==", "="]),
    "base64url": (["_-8="], ["+/8="]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_hold(name: str) -> None:
    schema = {"type": "string", "format": name}
    right, wrong = FORMATS[name]
    assert [text for text in right if not accepts(schema, json.dumps(text))] == []
    assert [text for text in wrong if accepts(schema, json.dumps(text))] == []


def _bytes_of(text: str) -> bytes:
    return base64.b64decode(text, altchars=b"_-" if set("_-") & set(text) else None, validate=True)


def _uuid_of(version: int) -> Callable[[str], Any]:
    def read(text: str) -> None:
        assert uuid.UUID(text).version == version

    return read


READERS: dict[str, Callable[[str], Any]] = {
    "date": datetime.date.fromisoformat,
    "date-time": datetime.datetime.fromisoformat,
    "time": datetime.time.fromisoformat,
    "ipv4": ipaddress.IPv4Address,
    "ipv4network": ipaddress.IPv4Network,
    "ipv6network": ipaddress.IPv6Network,
    "ipv4interface": ipaddress.IPv4Interface,
    "ipv6interface": ipaddress.IPv6Interface,
    "ipvanyaddress": ipaddress.ip_address,
    "ipvanynetwork": ipaddress.ip_network,
    "ipvanyinterface": ipaddress.ip_interface,
    "ipv6": ipaddress.IPv6Address,
    "uri": lambda text: urlsplit(text).port,
    "base64": _bytes_of,
    "base64url": _bytes_of,
    **{f"uuid{version}": _uuid_of(version) for version in (1, 3, 4, 5, 6, 7, 8)},
}


@pytest.mark.parametrize("name", sorted(STRINGS))
def test_texts_in_a_format_are_accepted_by_other_parsers(name: str) -> None:
    read = READERS.get(name)
    values = said({"type": "string", "format": name}, 30)
    assert len(values) > 5
    for value in values:
        assert re.fullmatch(STRINGS[name], value)
        if read is not None:
            read(value)


def test_formats_combine_with_other_keywords() -> None:
    schema = {"format": "uri", "type": "string", "minLength": 1, "maxLength": 2083, "pattern": "^https:"}
    assert accepts(schema, '"https://a.example"')
    assert not accepts(schema, '"http://a.example"')
    assert accepts({"format": "date"}, "1"), "a format is about strings alone"
    assert not accepts({"format": "date"}, '"1"')
    assert accepts({"type": ["string", "null"], "format": "date"}, "null")
    for name in ("password", "binary", "path"):
        assert accepts({"type": "string", "format": name}, '"any"')
    assert accepts({"type": "number", "format": "double"}, "1.5")


# ---------------------------------------------------------------- many


@pytest.mark.parametrize("seed", range(25))
def test_random_schemas_hold_or_are_refused(seed: int) -> None:
    rng = random.Random(seed)
    held = 0
    for _ in range(20):
        schema = random_schema(rng, 3) | {"$defs": {name: random_schema(rng, 2) for name in "pq"}}
        try:
            grammar_of(schema)
        except (UnsupportedError, ValueError):
            continue
        validator = jsonschema.Draft202012Validator(schema)
        for value in said(schema, 4, limit=120, seed=seed):
            assert [error.message for error in validator.iter_errors(value)] == [], schema
            held += 1
    assert held > 10
