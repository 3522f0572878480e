# SPDX-License-Identifier: Apache-2.0
"""The keywords of JSON Schema: enforced ones, annotations, and refused ones."""

from __future__ import annotations

import difflib

SHAPES = ("properties", "patternProperties", "additionalProperties", "minProperties", "maxProperties", "propertyNames")
ENFORCED = frozenset(
    {
        *SHAPES,
        *("type", "const", "enum", "$ref", "allOf", "anyOf", "oneOf", "required"),
        *("minLength", "maxLength", "pattern", "format"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "nullable"),
    }
)
ANNOTATIONS = frozenset(
    {
        *("$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$comment", "$defs", "definitions"),
        *("title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly"),
        *("contentMediaType", "contentEncoding", "contentSchema", "discriminator", "externalDocs", "xml"),
    }
)
KNOWN = frozenset(
    {
        *("not", "if", "then", "else", "contains", "minContains", "maxContains"),
        *("dependencies", "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties"),
        *("$dynamicRef", "$recursiveRef", "$recursiveAnchor", "$vocabulary"),
    }
)
INSTEAD = {
    "uniqueItems": "leave it out, and drop what comes twice",
    "oneOf": "its options may overlap: use anyOf, or give them a property that is const and different in each",
    "if": "write the cases as anyOf",
    "then": "write the cases as anyOf",
    "else": "write the cases as anyOf",
}

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

_FOLDED = {name.lower(): name for name in (*ENFORCED, *KNOWN)}


def near_miss(name: str) -> str | None:
    """The keyword that `name` is probably a misspelling of, or None if it is an annotation that nothing enforces."""
    found = difflib.get_close_matches(name.lower().replace("_", ""), _FOLDED, 1, 0.82)
    return _FOLDED[found[0]] if found else None
