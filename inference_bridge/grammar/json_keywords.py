# SPDX-License-Identifier: Apache-2.0
"""The keywords of JSON Schema: which are enforced, which are annotations, and which are refused."""

from __future__ import annotations

import difflib

PROPERTY_KEYWORDS = (
    "properties",
    "patternProperties",
    "additionalProperties",
    "minProperties",
    "maxProperties",
    "propertyNames",
)
ENFORCED = frozenset(
    {
        *PROPERTY_KEYWORDS,
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
"""Keywords that are refused, because they can't be enforced."""

INSTEAD = {
    "uniqueItems": "leave it out, and remove duplicates from the answer",
    "oneOf": "its options may overlap: use anyOf, or give them a property that is const and different in each",
    "if": "write the cases as anyOf",
    "then": "write the cases as anyOf",
    "else": "write the cases as anyOf",
}
"""What to write in place of a refused keyword."""

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

_FOLDED = {name.lower(): name for name in (*ENFORCED, *KNOWN)}


def near_miss(name: str) -> str | None:
    """Return the keyword that `name` probably misspells. None: `name` resembles no keyword, so it is an annotation."""
    found = difflib.get_close_matches(name.lower().replace("_", ""), _FOLDED, 1, 0.82)
    return _FOLDED[found[0]] if found else None
