# SPDX-License-Identifier: Apache-2.0
"""Check whether an answer satisfies its `json_schema` and its `tool_choice`.

These checks are for models that may ignore both, such as models on servers of other programs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from .._calls import strict_json
from ..options import is_forced

if TYPE_CHECKING:
    from jsonschema_rs import Validator

MAX_DEPTH = 200
"""Maximum number of arrays and objects that an answer may nest. The comparison needs stack for each of them."""

_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]')


def schema_validator(schema: Mapping[str, Any]) -> Validator:
    """Return an object that compares values with a schema. It checks formats too.

    The draft is that of `$schema`, else 2020-12, or draft 7 if only that one allows the schema (`items` is a list).

    Args:
        schema: The JSON schema.

    Raises:
        ValueError: The schema is invalid, or refers to another document.
    """
    import jsonschema_rs

    plain = _with_null(json.loads(json.dumps(schema)))
    errors: list[Exception] = []
    for draft in (jsonschema_rs.validator_for, jsonschema_rs.Draft202012Validator, jsonschema_rs.Draft7Validator):
        try:
            return draft(plain, validate_formats=True, offline=True)
        except (jsonschema_rs.ValidationError, ValueError) as error:
            errors.append(error)
    said = getattr(errors[0], "message", str(errors[0]))
    place = "/".join(map(str, getattr(errors[0], "instance_path", ())))
    raise ValueError(f"json_schema is not a valid JSON Schema: at #/{place}: {said}"[:1000])


def why_not_satisfied(text: str, schema: Mapping[str, Any]) -> str:
    """Return why an answer does not satisfy a schema, or "" if it does.

    Args:
        text: The whole answer.
        schema: The JSON schema.

    Raises:
        ValueError: The schema is invalid.
    """
    if _is_deeper(text, MAX_DEPTH):
        return f"nests more than {MAX_DEPTH} arrays and objects, too many to compare"
    try:
        value = strict_json.loads(text)
    except ValueError:
        return "is not JSON"
    try:
        problem = next(schema_validator(schema).iter_errors(value), None)
    except UnicodeEncodeError:
        return "is not text: it has half of a surrogate pair"
    if problem is None:
        return ""
    rule, place = ("#/" + "/".join(map(str, path)) for path in (problem.schema_path, problem.instance_path))
    return f"does not satisfy {rule[:500]} of the schema at {place[:500]}"


def why_not_forced(tool_choice: str | None, names: Collection[str | None]) -> str:
    """Return why an answer does not satisfy its `tool_choice`, or "" if it does.

    Args:
        tool_choice: The option of the request.
        names: The names of the tools that the answer calls.
    """
    if not is_forced(tool_choice):
        return ""
    if not names:
        return "has no tool call that can be read"
    others = sorted(str(name) for name in names if tool_choice not in ("required", name))
    return f"calls {', '.join(others)}" if others else ""


def _with_null(schema: Any) -> Any:
    """Return a schema with the type "null" in place of the keyword `nullable` of OpenAPI 3.0."""
    if isinstance(schema, list):
        return [_with_null(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: part if key in ("const", "enum") else _with_null(part) for key, part in schema.items()}
    if out.get("nullable") is True and isinstance(kinds := out.get("type"), str | list):
        out["type"] = [*dict.fromkeys([*([kinds] if isinstance(kinds, str) else kinds), "null"])]
    return out


def _is_deeper(text: str, limit: int) -> bool:
    """Return whether a JSON text nests more arrays and objects than `limit`."""
    if text.count("[") + text.count("{") <= limit:
        return False
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        depth += (found[0] in "[{") - (found[0] in "]}")
        if depth > limit:
            return True
    return False
