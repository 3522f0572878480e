# SPDX-License-Identifier: Apache-2.0
"""Rewrites a JSON Schema into one that llguidance enforces completely. What it can't enforce is an error.

llguidance ignores keywords it does not know, enforces some only in part, and depends on their order. A schema is
therefore rewritten with only the keywords that llguidance enforces. For a keyword that can't be enforced, an error
names the keyword and its place. The new schema may allow less than the given one, never more:

- an object has only the named properties, unless `additionalProperties` or another keyword describes the others
- keys come in the order of `properties`
- `oneOf` becomes `anyOf` if the options exclude each other; to achieve that, a tag may become required
- dates are valid dates from the year 1 on
- bounded numbers stay below 2**53
- a pattern matches only texts that it matches both in JavaScript and in Python

The keywords are those of draft 2020-12, and those that have other names or forms in earlier drafts.
Sources: https://json-schema.org/draft/2020-12/json-schema-validation, llguidance's docs/json_schema.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import inf, nextafter
from typing import Any, NoReturn
from urllib.parse import unquote

from .._suggest import did_you_mean
from ..errors import UnsupportedError
from .endless import without_endless
from .json_formats import EVERY_STRING, NUMBERS, STRINGS
from .json_keywords import ANNOTATIONS, ENFORCED, INSTEAD, KNOWN, PROPERTY_KEYWORDS, TYPES, near_miss
from .one_of import exclusive, tag
from .patterns import regexes
from .schema_parts import is_text, list_at, object_at, required_names, short
from .unique_items import MAX_UNIQUE, subsets

MAX_SIZE = 1 << 20
"""Maximum length of a schema as JSON, in characters."""

MAX_PARTS = 10_000
"""Maximum number of subschemas and constants in a schema. Checking this many takes a second."""

# The largest integer that all JSON parsers represent exactly, because many use doubles: RFC 8259, section 6.
_SAFE = (1 << 53) - 1

# The smallest distance of a number from an exclusive bound.
_CLOSE = 1e-12

# Without \u escapes, each character can be written in only one way, so that an object can't have the same key twice.
_OPTIONS = {"whitespace_flexible": False, "lenient": False, "coerce_one_of": False, "json_allowed_escapes": 'nrbtf\\"'}
SPACED = {"item_separator": ", ", "key_separator": ": "}


def json_grammar(schema: Mapping[str, Any] | bool, *, what: str, backend: str, spaced: bool = False) -> str:
    """Return the schema as a term of llguidance's Lark dialect, `%json {…}`.

    Args:
        schema: The schema.
        what: The name of the option with the schema, for errors.
        backend: The backend's name, for errors.
        spaced: Whether the JSON has spaces as in Python's json.dumps. Otherwise it is compact.

    Raises:
        TypeError: The schema contains a value that JSON does not have.
        ValueError: The schema is invalid, or nothing satisfies it. The message names the place of an invalid keyword as
            a JSON Pointer.
        UnsupportedError: A keyword can't be enforced. The message names the keyword, and its place as a JSON Pointer.
    """
    try:
        text = json.dumps(schema, allow_nan=False)
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply, or refers to itself: use $ref") from None
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what} is not JSON: {error}") from None
    if len(text) > MAX_SIZE:
        raise ValueError(f"{what} has {len(text)} characters as JSON: at most {MAX_SIZE} are supported")
    return _checked(text, what, backend, spaced)


@lru_cache(maxsize=64)
def _checked(text: str, what: str, backend: str, spaced: bool) -> str:
    from llguidance import LLMatcher

    writer = _Writer(json.loads(text), what, backend)
    try:
        schema = writer.document()
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    options = _OPTIONS | SPACED if spaced else _OPTIONS

    def problem(part: Any) -> str:
        failed, messages = LLMatcher.validate_grammar_with_warnings(f"start: {_term(part, options)}")
        if not failed:
            return ""
        lines = messages[0].rpartition("failed to compile JSON schema: ")[2].splitlines()
        return next((line for line in lines if line.startswith("error: ")), lines[0]).removeprefix("error: ")

    why = problem(schema)
    if not why:
        return _term(schema, options)
    if why.startswith("Unsatisfiable"):
        raise ValueError(f"{what}: nothing satisfies this schema ({why})")
    for path, keyword, part in writer.doubtful:
        reason = problem(part)
        if reason and not reason.startswith("Unsatisfiable"):
            writer.refuse(path, keyword, "" if keyword == "oneOf" else reason)
    raise UnsupportedError(f"this {what}", backend, writer.with_given_references(why))


def _term(schema: Any, options: Mapping[str, Any]) -> str:
    schema = {} if schema is True else schema
    return "%json " + json.dumps({**schema, "x-guidance": options}, ensure_ascii=False)


class _Writer:
    """Rewrites one schema document."""

    def __init__(self, root: Any, what: str, backend: str) -> None:
        self.doubtful: list[tuple[str, str, Any]] = []
        """Place, keyword and a small schema for each keyword that llguidance may refuse."""
        self._root = root
        self._what = what
        self._backend = backend
        self._names: dict[tuple[str, bool, tuple[str, ...]], str] = {}
        self._defs: dict[str, Any] = {}
        self._sound: set[str] = set()
        self._parts_written = 0

    def document(self) -> Any:
        """Return the rewritten schema, with its definitions in `$defs`."""
        schema = self.write(self._root, "#")
        if schema is False:
            raise ValueError(f"{self._what}: nothing satisfies the schema false")
        for name in self._defs:
            self._check_loop(name)
        schema, definitions = without_endless(schema, self._defs)
        if schema is False:
            raise ValueError(
                f"{self._what}: nothing satisfies this schema, because its definitions require each other without end"
            )
        return {**schema, "$defs": definitions} if definitions else schema

    # ------------------------------------------------ errors

    def invalid(self, path: str, why: str) -> NoReturn:
        raise ValueError(f"{self._what} is not a valid JSON Schema: {path} {why}")

    def refuse(self, path: str, keyword: str, why: str = "") -> NoReturn:
        hint = INSTEAD.get(keyword, "")
        place = f"at {path} of {self._what}"
        detail = "; ".join(part for part in (why, hint) if part)
        raise UnsupportedError(
            f"the JSON Schema keyword {keyword!r}", self._backend, f"{place}{': ' if detail else ''}{detail}"
        )

    def with_given_references(self, message: str) -> str:
        """Return llguidance's message with the caller's references in place of the rewritten ones."""
        for (ref, _, _), name in self._names.items():
            message = re.sub(rf"\S*#/\$defs/{name}\b", ref, message)
        return message

    def _get(self, node: dict[str, Any], key: str, kind: type, path: str) -> Any:
        value = node.get(key)
        if key in node and (not isinstance(value, kind) or isinstance(value, bool)):
            self.invalid(f"{path}/{key}", f"must be {_KIND_NAMES[kind]}, not {short(value)}")
        return value

    def _get_flag(self, node: dict[str, Any], key: str, path: str) -> bool:
        value = node.get(key, False)
        if not isinstance(value, bool):
            self.invalid(f"{path}/{key}", f"must be true or false, not {short(value)}")
        return value

    def _count(self, node: dict[str, Any], key: str, path: str) -> int | None:
        value: int | None = self._get(node, key, int, path)
        if value is not None and value < 0:
            self.invalid(f"{path}/{key}", f"must not be negative, but is {value}")
        return value

    # ------------------------------------------------ one schema

    def write(self, node: Any, path: str, closed: bool = True, require: tuple[str, ...] = ()) -> Any:
        """Rewrite one schema.

        Args:
            node: The schema.
            path: Its place, as a JSON Pointer.
            closed: Whether no other schema applies to the same object, so that unnamed properties can be excluded.
            require: Properties that become required.
        """
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            self.invalid(path, f"must be an object or a boolean, not {short(node)}")
        self._check_keywords(node, path)
        self._parts_written += 1 + len(list_at(node, "enum"))
        if self._parts_written > MAX_PARTS:
            raise ValueError(f"{self._what} is too large: it has more than {MAX_PARTS} parts")
        combined = [key for key in ("$ref", "allOf", "anyOf", "oneOf") if key in node]
        alone = len(combined) == 1 and not any(key in node for key in (*PROPERTY_KEYWORDS, "required")) and not require
        alone = alone and len(list_at(node, "allOf")) < 2
        out: dict[str, Any] = {}
        also: list[Any] = []
        if "type" in node:
            out["type"] = self._type(node, path)
            if self._get_flag(node, "nullable", path):  # OpenAPI 3.0
                types = out["type"] if isinstance(out["type"], list) else [out["type"]]
                out["type"] = [*dict.fromkeys([*types, "null"])]
        self._write_object(node, path, out, closed and not combined, require)
        self._write_array(node, path, out, also)
        self._write_string(node, path, out, also)
        self._write_number(node, path, out)
        if "const" in node:
            self._check_value(node["const"], f"{path}/const")
            out["const"] = node["const"]
        if "enum" in node:
            out["enum"] = self._get(node, "enum", list, path)
            for index, value in enumerate(out["enum"]):
                self._check_value(value, f"{path}/enum/{index}")
        if "$ref" in node:
            out["$ref"] = self._ref(node["$ref"], path, closed and alone)
        for key in ("allOf", "anyOf"):
            if key in node:
                out[key] = [self.write(part, place, closed and alone) for place, part in self._parts(node, key, path)]
        if "oneOf" in node:
            also.append(self._one_of(node, path, closed and alone))
        if closed and combined and not alone and (names := self._named(node, path)):
            also.append({"properties": dict.fromkeys(names, True), "additionalProperties": False})
        if also and len(out) == 0 and len(also) == 1:
            return also[0]
        if also:
            out["allOf"] = [*out.pop("allOf", ()), *also]
        return out

    def _check_keywords(self, node: dict[str, Any], path: str) -> None:
        for key in node:
            if key in ENFORCED or key in ANNOTATIONS or key.startswith("x-"):
                continue
            if key in KNOWN:
                self.refuse(path, key)
            if near := near_miss(key):
                self.invalid(path, f"has an unknown keyword {key!r}: did you mean {near!r}?")
        if path == "#" and isinstance(node.get("schema"), dict) and not any(key in ENFORCED for key in node):
            self.invalid(
                path, "is a wrapper with the schema inside, as OpenAI's response_format: give its 'schema' alone"
            )
        if path != "#" and isinstance(node.get("$id"), str) and not node["$id"].startswith("#"):
            self.refuse(path, "$id", "a subschema can't have its own address")

    def _type(self, node: dict[str, Any], path: str) -> Any:
        stated = node["type"]
        for name in stated if isinstance(stated, list) else [stated]:
            if name not in TYPES:
                near = did_you_mean(name, TYPES) if isinstance(name, str) else ""
                self.invalid(f"{path}/type", f"has an unknown type: {short(name)}{near}")
        if stated == []:
            self.invalid(f"{path}/type", "names no type")
        return stated

    def _parts(self, node: dict[str, Any], key: str, path: str) -> Iterator[tuple[str, Any]]:
        value = self._get(node, key, list, path)
        if not value and key not in ("prefixItems", "items"):
            self.invalid(f"{path}/{key}", "must not be empty")
        yield from ((f"{path}/{key}/{index}", part) for index, part in enumerate(value))

    def _members(self, node: dict[str, Any], key: str, path: str) -> Iterator[tuple[str, str, Any]]:
        for name, part in (self._get(node, key, dict, path) or {}).items():
            if not is_text(name):
                self.invalid(f"{path}/{key}", "has a key that is not valid Unicode text")
            yield name, f"{path}/{key}/{name.replace('~', '~0').replace('/', '~1')}", part

    # ------------------------------------------------ objects

    def _write_object(
        self, node: dict[str, Any], path: str, out: dict[str, Any], closed: bool, require: tuple[str, ...]
    ) -> None:
        stated = self._get(node, "required", list, path) or []
        if not all(isinstance(name, str) and is_text(name) for name in stated):
            self.invalid(f"{path}/required", "must be a list of strings")
        required = list(dict.fromkeys([*stated, *require]))
        if required:
            out["required"] = required
        least, most = self._count(node, "minProperties", path), self._count(node, "maxProperties", path)
        properties = {name: self.write(part, place) for name, place, part in self._members(node, "properties", path)}
        patterns = {}
        for pattern, place, part in self._members(node, "patternProperties", path):
            patterns[self._regex(pattern, path, "patternProperties")] = self.write(part, place)
        rest = node.get("additionalProperties")
        if "additionalProperties" in node:
            rest = self.write(rest, f"{path}/additionalProperties")
        elif closed and ("properties" in node or patterns) and properties.keys() >= set(required):
            rest = False
        if "propertyNames" in node:
            rest = self._write_names(node, path, properties, patterns, rest)
        for key, value in (("properties", properties), ("patternProperties", patterns)):
            if value:
                out[key] = value
        if rest is not None:
            out["additionalProperties"] = rest
        out |= {key: count for key, count in (("minProperties", least), ("maxProperties", most)) if count is not None}
        if least is not None and least - len(required) > 1 and (patterns or rest is not False):
            # The model could write the same key twice.
            self.refuse(path, "minProperties", "more than one property that is not in required")
        if least or most is not None or len(patterns) > 1:
            names = {name: {"type": "null"} for name in properties}
            blank = {"properties": names, "patternProperties": {pattern: {"type": "null"} for pattern in patterns}}
            keyword = "patternProperties" if len(patterns) > 1 else "minProperties" if least else "maxProperties"
            self.doubtful.append((path, keyword, {**out, **blank, "type": "object"}))

    def _write_names(
        self, node: dict[str, Any], path: str, properties: dict[str, Any], patterns: dict[str, Any], rest: Any
    ) -> Any:
        """Express `propertyNames` with other keywords: add to `properties` or `patterns`.

        Returns:
            The new value of `additionalProperties`, given its value `rest`.
        """
        place = f"{path}/propertyNames"
        names = self._resolved(node["propertyNames"], place)
        self.write(names, place)
        limits = {key: names[key] for key in names if key in ENFORCED} if isinstance(names, dict) else {}
        limits.pop("type", None)
        if names is True or (isinstance(names, dict) and not limits):
            return rest
        if properties or patterns or not isinstance(names, dict):
            self.refuse(path, "propertyNames", "not together with other keywords for properties")
        value = True if rest is None else rest
        if set(limits) in ({"const"}, {"enum"}):
            given = names["enum"] if "enum" in names else [names["const"]]
            properties.update({name: value for name in given if isinstance(name, str)})
        elif set(limits) == {"pattern"}:
            patterns[self._regex(names["pattern"], place, "pattern")] = value
        elif set(limits) == {"format"} and names["format"] in STRINGS:
            patterns[STRINGS[names["format"]]] = value
        elif set(limits) <= {"minLength", "maxLength"}:
            least, most = names.get("minLength", 0), names.get("maxLength", "")
            patterns[rf"^[\s\S]{{{least},{most}}}$"] = value
        else:
            self.refuse(path, "propertyNames", "only one of enum, pattern, format and lengths")
        return False

    def _named(self, root: dict[str, Any], path: str) -> list[str]:
        """Return the properties that the schema and its parts name; [] if a part also describes unnamed properties."""
        names: dict[str, None] = {}
        seen: set[int] = set()
        parts: list[Any] = [root]
        while parts:
            part = parts.pop(0)
            if isinstance(part, bool) or id(part) in seen:
                continue
            if not isinstance(part, dict) or any(key in part for key in PROPERTY_KEYWORDS if key != "properties"):
                return []
            seen.add(id(part))
            names |= dict.fromkeys([*object_at(part, "properties"), *required_names(part)])
            for key in ("allOf", "anyOf", "oneOf"):
                parts += list_at(part, key)
            if "$ref" in part:
                parts.append(self._target(part["$ref"], path))
        return list(names)

    # ------------------------------------------------ arrays

    def _write_array(self, node: dict[str, Any], path: str, out: dict[str, Any], also: list[Any]) -> None:
        for key in ("minItems", "maxItems"):
            if (count := self._count(node, key, path)) is not None:
                out[key] = count
        first, rest = "prefixItems", "items"
        if isinstance(node.get("items"), list):  # until draft 2019-09
            if "prefixItems" in node:
                self.invalid(f"{path}/items", "must be a schema, not a list, if there is prefixItems")
            first, rest = "items", "additionalItems"
        if first in node:
            out["prefixItems"] = [self.write(part, place) for place, part in self._parts(node, first, path)]
        if rest in node:
            out["items"] = self.write(node[rest], f"{path}/{rest}")
        if self._get_flag(node, "uniqueItems", path) and out.get("maxItems", 2) > 1:
            listed = subsets(self._resolved(node.get(rest), path), out) if first not in node else None
            if listed is None:
                self.refuse(path, "uniqueItems", f"only for items of an enum of at most {MAX_UNIQUE} values")
            for key in ("items", "minItems", "maxItems"):
                out.pop(key, None)
            also.append({"anyOf": [{"type": "array", **part} for part in listed] + self._not_arrays(out)})

    @staticmethod
    def _not_arrays(out: dict[str, Any]) -> list[Any]:
        stated = out.get("type", [*TYPES])
        others = [name for name in (stated if isinstance(stated, list) else [stated]) if name != "array"]
        return [{"type": others}] if others else []

    # ------------------------------------------------ strings

    def _write_string(self, node: dict[str, Any], path: str, out: dict[str, Any], also: list[Any]) -> None:
        for key in ("minLength", "maxLength"):
            if (count := self._count(node, key, path)) is not None:
                out[key] = count
        if "pattern" in node:
            out["pattern"], *more = self._regexes(self._get(node, "pattern", str, path), path, "pattern")
            also += [{"pattern": part} | ({"type": out["type"]} if "type" in out else {}) for part in more]
        if "format" not in node:
            return
        name = self._get(node, "format", str, path)
        stated = out.get("type", [])
        types = set(stated if isinstance(stated, list) else [stated])
        if types and types <= {"integer", "number", "null"} and name in NUMBERS:
            low, high = NUMBERS[name]
            also.extend([{"type": stated, "minimum": low, "maximum": high}] if high else [])
        elif name in STRINGS:
            format = {"pattern": STRINGS[name]}
            also.append({"type": stated, **format} if types else format)
        elif name not in EVERY_STRING and "pattern" not in node:
            known = ", ".join(sorted(STRINGS))
            self.refuse(path, "format", f"{name!r} can't be enforced; these can: ({known})")

    def _regexes(self, pattern: str, path: str, keyword: str) -> list[str]:
        try:
            written = regexes(pattern)
        except (ValueError, RecursionError) as error:
            self.refuse(path, keyword, f"{pattern!r}: {error}")
        for part in written:
            self.doubtful.append((path, keyword, {"type": "string", "pattern": part}))
        return written

    def _regex(self, pattern: str, path: str, keyword: str) -> str:
        written = self._regexes(pattern, path, keyword)
        if len(written) > 1:
            self.refuse(path, keyword, f"{pattern!r}: lookaround is supported only in values")
        return written[0]

    # ------------------------------------------------ numbers

    def _write_number(self, node: dict[str, Any], path: str, out: dict[str, Any]) -> None:
        for key, strict, sign in (("minimum", "exclusiveMinimum", 1), ("maximum", "exclusiveMaximum", -1)):
            if isinstance(node.get(strict), bool):  # draft 4
                bounds = {strict if node[strict] else key: self._number(node, key, path)}
            else:
                bounds = {each: self._number(node, each, path) for each in (key, strict)}
            for each, value in bounds.items():
                if value is None:
                    continue
                if value * sign > _SAFE:
                    self.refuse(path, each, "only below 2**53 in size")
                if value * sign < -_SAFE:
                    each, value = key, -sign * _SAFE
                elif each == strict and value == int(value) and value * sign >= 0 and out.get("type") != "integer":
                    # llguidance 1.9 accepts 0 as a number above 0 and at most 0.5.
                    each, value = key, sign * max(sign * nextafter(value, sign * inf), sign * value + _CLOSE)
                out[each] = value if each not in out else sign * max(sign * out[each], sign * value)
        multiple = self._number(node, "multipleOf", path)
        if multiple is not None:
            if multiple <= 0:
                self.invalid(f"{path}/multipleOf", f"must be above 0, not {multiple}")
            out["multipleOf"] = multiple
            if multiple != int(multiple) and out.get("type") != "integer":
                # A double represents a decimal number of more than 15 digits only approximately.
                most = min(float(_SAFE), multiple * 10**12)
                for key, strict, sign in (("minimum", "exclusiveMinimum", -1), ("maximum", "exclusiveMaximum", 1)):
                    if key not in out and strict not in out:
                        out[key] = sign * most
            self.doubtful.append((path, "multipleOf", {"type": "number", "multipleOf": multiple}))

    def _number(self, node: dict[str, Any], key: str, path: str) -> float | None:
        value = node.get(key)
        if key in node and (isinstance(value, bool) or not isinstance(value, int | float)):
            self.invalid(f"{path}/{key}", f"must be a number, not {short(value)}")
        return value

    # ------------------------------------------------ values

    def _check_value(self, value: Any, path: str) -> None:
        """Raise UnsupportedError if llguidance could not generate the constant exactly."""
        keyword = "enum" if "/enum/" in path else "const"
        if isinstance(value, int | float) and abs(value) > _SAFE:
            self.refuse(path, keyword, "numbers only below 2**53 in size")
        elif isinstance(value, str):
            if not is_text(value):
                self.refuse(path, keyword, "a string that is not valid Unicode text")
            if any(char in "\x7f" or (char < " " and char not in "\b\t\n\f\r") for char in value):
                self.refuse(path, keyword, "a string with control characters")
        elif isinstance(value, list | dict):
            for part in value if isinstance(value, list) else [*value, *value.values()]:
                self._check_value(part, path)

    # ------------------------------------------------ references

    def _ref(self, ref: Any, path: str, closed: bool, require: tuple[str, ...] = ()) -> str:
        """Return a reference to a definition of the new document. The definition is written at the first reference."""
        target = self._target(ref, path)
        name = self._names.get((ref, closed, require))
        if name is None:
            name = self._names[ref, closed, require] = f"d{len(self._names)}"
            self._defs[name] = None
            self._defs[name] = self.write(target, ref, closed, require)
        return f"#/$defs/{name}"

    def _target(self, ref: Any, path: str) -> Any:
        if not isinstance(ref, str):
            self.invalid(f"{path}/$ref", f"must be a string, not {short(ref)}")
        root = self._root
        address = root.get("$id") if isinstance(root, dict) else None
        pointer = (ref.removeprefix(address.rstrip("#")) if isinstance(address, str) else ref) or "#"
        if pointer != "#" and not pointer.startswith("#/"):
            self.refuse(path, "$ref", f"{ref!r} is not a place in the same schema, such as '#/$defs/name'")
        target = root
        for step in unquote(pointer[2:]).split("/") if pointer != "#" else ():  # RFC 6901, section 6
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and step in target:
                target = target[step]
            elif isinstance(target, list) and step.isdecimal() and int(step) < len(target):
                target = target[int(step)]
            else:
                self.invalid(f"{path}/$ref", f"refers to {ref!r}, which does not exist")
        return target

    def _resolved(self, node: Any, path: str) -> Any:
        """Follow references without other enforced keywords. Return the schema that they refer to."""
        for _ in range(32):
            if not isinstance(node, dict) or "$ref" not in node or any(key in ENFORCED - {"$ref"} for key in node):
                break
            node = self._target(node["$ref"], path)
        return node

    def _check_loop(self, name: str, within: tuple[str, ...] = ()) -> None:
        """Refuse a definition that applies itself to the same value again."""
        if name in within:
            self.invalid("#", "has a $ref that leads back to itself")
        if name in self._sound:
            return
        parts = [self._defs[name]]
        while parts:
            part = parts.pop()
            if isinstance(part, dict):
                parts += [*list_at(part, "allOf"), *list_at(part, "anyOf"), *list_at(part, "oneOf")]
                if "$ref" in part:
                    self._check_loop(part["$ref"].rpartition("/")[2], (*within, name))
        self._sound.add(name)

    # ------------------------------------------------ one of several

    def _one_of(self, node: dict[str, Any], path: str, closed: bool) -> dict[str, Any]:
        places = list(self._parts(node, "oneOf", path))
        written = [self.write(part, place, closed) for place, part in places]
        options = [self._resolved(part, place) for place, part in places]

        def resolve(part: Any) -> Any:
            return self._resolved(part, path)

        apart = exclusive(options, resolve)
        if not apart or "discriminator" in node:
            name = tag(options, resolve, object_at(node, "discriminator").get("propertyName"))
            if name is not None:
                apart = True
                for index, (place, part) in enumerate(places):
                    if options[index] is not part:
                        written[index] = {"$ref": self._ref(part["$ref"], place, closed, (name,))}
                    else:
                        written[index]["required"] = [*dict.fromkeys([*required_names(part), name])]
        if not apart:
            self.doubtful.append((path, "oneOf", {"oneOf": written, "$defs": self._defs}))
        return {"anyOf" if apart else "oneOf": written}


_KIND_NAMES = {dict: "an object", list: "a list", str: "a string", int: "an integer"}
