# SPDX-License-Identifier: Apache-2.0
"""Schemas of the kind that users give to a model: prompts, and the forms of the answers.

Strings and lists are bounded, so that a small model comes to an end.
"""

from __future__ import annotations

from typing import Any


def thing(required: dict[str, Any], optional: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": required | (optional or {}), "required": list(required), **more}


def text(most: int = 30, **more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": most, **more}


def whole(least: int, most: int, **more: Any) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most, **more}


def some(items: Any, most: int, least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def one(*values: Any) -> dict[str, Any]:
    return {"enum": list(values)}


def ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


BOOL = {"type": "boolean"}
MAYBE_TEXT = {"anyOf": [text(20), {"type": "null"}], "default": None}
MONEY = thing({"amount": {"type": "number", "minimum": 0, "maximum": 100000}, "currency": one("EUR", "USD", "GBP")})

SCHEMAS: dict[str, tuple[str, dict[str, Any]]] = {
    "person": (
        "Ada Lovelace, born 10 December 1815 in London, mathematician.",
        thing({"name": text(), "born": text(10, format="date"), "city": text(20)}, {"job": MAYBE_TEXT}),
    ),
    "sentiment": (
        "The food was cold, but the waiter was kind.",
        thing(
            {"label": one("positive", "neutral", "negative"), "score": {"type": "number", "minimum": 0, "maximum": 1}}
        ),
    ),
    "entities": (
        "Marie Curie worked in Paris for the Sorbonne.",
        some(thing({"text": text(20), "kind": one("person", "place", "organisation")}), 4, 1),
    ),
    "invoice": (
        "Invoice 2024-0042 to Acme Ltd: two chairs at 49.50 euros.",
        thing(
            {
                "number": {"type": "string", "pattern": "^\\d{4}-\\d{4}$"},
                "lines": some(thing({"item": text(20), "quantity": whole(1, 99), "price": ref("money")}), 2, 1),
                "total": ref("money"),
            },
            **{"$defs": {"money": MONEY}},
        ),
    ),
    "address": (
        "10 Downing Street, London SW1A 2AA",
        thing({"street": text(), "city": text(20), "postcode": {"type": "string", "pattern": "^[A-Z0-9 ]{3,8}$"}}),
    ),
    "event": (
        "Team meeting on 3 May 2024 from nine to ten in room B.",
        thing(
            {"title": text(), "start": {"type": "string", "format": "date-time"}, "minutes": whole(5, 480)},
            {"room": text(10), "guests": some({"type": "string", "format": "email", "maxLength": 30}, 2)},
        ),
    ),
    "recipe": (
        "Pancakes of flour, milk and eggs.",
        thing(
            {
                "title": text(),
                "ingredients": some(
                    thing({"name": text(15), "amount": {"type": "number", "exclusiveMinimum": 0, "maximum": 1000}}),
                    3,
                    1,
                ),
                "steps": some(text(40), 3, 1),
            }
        ),
    ),
    "package": (
        "A package named left-pad, version 1.2.3, licence MIT.",
        thing(
            {"name": {"type": "string", "pattern": "^[a-z0-9-]{1,20}$"}, "version": ref("version")},
            {
                "license": one("MIT", "Apache-2.0", "BSD-3-Clause"),
                "dependencies": {"type": "object", "additionalProperties": ref("version"), "maxProperties": 2},
            },
            **{"$defs": {"version": {"type": "string", "pattern": "^\\d{1,2}\\.\\d{1,2}\\.\\d{1,2}$"}}},
        ),
    ),
    "issue": (
        "The button does not react on a phone.",
        thing(
            {"title": text(40), "labels": some(one("bug", "feature", "docs"), 2), "open": BOOL},
            {"assignee": MAYBE_TEXT, "milestone": {"type": ["integer", "null"], "minimum": 1, "maximum": 9}},
        ),
    ),
    "tree": (
        "A folder with two files in it.",
        thing(
            {"name": text(12)},
            {"children": some({"$ref": "#", "description": "what is inside"}, 2)},
        ),
    ),
    "filter": (
        "All people older than 30 who live in Berlin.",
        {
            "$ref": "#/$defs/filter",
            "$defs": {
                "filter": {"anyOf": [ref("compare"), ref("both")]},
                "compare": thing({"field": one("age", "city"), "op": one("=", "<", ">"), "value": ref("value")}),
                "value": {"type": ["string", "integer"], "maxLength": 10, "minimum": 0, "maximum": 150},
                "both": thing({"and": some(ref("compare"), 2, 2)}),
            },
        },
    ),
    "shape": (
        "A circle of radius five.",
        {
            "oneOf": [ref("circle"), ref("square")],
            "discriminator": {"propertyName": "kind", "mapping": {"circle": "#/$defs/circle"}},
            "$defs": {
                "circle": thing({"radius": whole(1, 50)}, {"kind": {"const": "circle", "default": "circle"}}),
                "square": thing({"side": whole(1, 50)}, {"kind": {"const": "square", "default": "square"}}),
            },
        },
    ),
    "point": (
        "A point at 52.5 north, 13.4 east.",
        thing(
            {
                "type": {"const": "Point"},
                "coordinates": {
                    "type": "array",
                    "prefixItems": [
                        {"type": "number", "minimum": -180, "maximum": 180},
                        {"type": "number", "minimum": -90, "maximum": 90},
                    ],
                    "items": False,
                    "minItems": 2,
                },
            }
        ),
    ),
    "colour": (
        "A light blue.",
        {
            "oneOf": [
                {"type": "string", "pattern": "^#[0-9a-f]{6}$"},
                {"type": "array", "items": whole(0, 255), "minItems": 3, "maxItems": 3},
            ]
        },
    ),
    "matrix": ("The unit matrix of two rows.", some(some(whole(-9, 9), 2, 2), 2, 2)),
    "quiz": (
        "A question on the planets.",
        thing({"question": text(60), "choices": some(text(15), 4, 4), "answer": whole(0, 3)}),
    ),
    "translations": (
        "Hello in German and French.",
        {"type": "object", "patternProperties": {"^[a-z]{2}$": text(15)}, "minProperties": 1, "maxProperties": 3},
    ),
    "labels": (
        "The labels of a web server.",
        thing(
            {"name": {"type": "string", "pattern": "^[a-z]([a-z0-9-]{0,10}[a-z0-9])?$"}},
            {"labels": {"type": "object", "additionalProperties": text(10), "maxProperties": 2}},
        ),
    ),
    "container": (
        "A postgres database on port 5432.",
        thing(
            {"image": {"type": "string", "pattern": "^[a-z]{1,12}(:[a-z0-9.]{1,8})?$"}},
            {
                "ports": some({"type": "string", "pattern": "^\\d{2,5}:\\d{2,5}$"}, 2),
                "restart": one("no", "always", "on-failure"),
            },
        ),
    ),
    "booking": (
        "From Berlin to Rome on 1 June 2024, two people.",
        thing(
            {
                "from": {"type": "string", "pattern": "^[A-Z]{3}$"},
                "to": {"type": "string", "pattern": "^[A-Z]{3}$"},
                "date": {"type": "string", "format": "date"},
                "passengers": whole(1, 9),
            },
            {"class": one("economy", "business"), "return": {"type": ["string", "null"], "format": "date"}},
        ),
    ),
    "patch": (
        "Replace the title, and remove the note.",
        some(
            {
                "oneOf": [
                    thing({"op": one("add", "replace"), "path": ref("path"), "value": text(10)}),
                    thing({"op": {"const": "remove"}, "path": ref("path")}),
                ]
            },
            2,
            1,
        )
        | {"$defs": {"path": {"type": "string", "format": "json-pointer", "maxLength": 12}}},
    ),
    "problem": (
        "The account has too little money.",
        thing(
            {"type": {"type": "string", "format": "uri", "maxLength": 30}, "title": text(), "status": whole(400, 599)}
        ),
    ),
    "sensor": (
        "21.5 degrees, 40 percent humidity.",
        thing(
            {
                "id": {"type": "string", "format": "uuid"},
                "readings": thing(
                    {"celsius": {"type": "number", "minimum": -40, "maximum": 85}},
                    {"humidity": whole(0, 100, multipleOf=5)},
                ),
            }
        ),
    ),
    "host": (
        "The server at 10.0.0.1.",
        thing(
            {"ip": {"anyOf": [{"type": "string", "format": "ipv4"}, {"type": "string", "format": "ipv6"}]}, "up": BOOL}
        ),
    ),
    "flag": (
        "Show the new page to a tenth of the users.",
        thing(
            {"key": {"type": "string", "pattern": "^[a-z_]{3,15}$"}, "enabled": BOOL},
            {"rollout": {"type": "number", "minimum": 0, "maximum": 100, "multipleOf": 0.5}},
            additionalProperties=False,
        ),
    ),
    "movie": (
        "Metropolis by Fritz Lang, 1927.",
        thing({"title": text(), "year": whole(1888, 2030)}, {"genres": some(text(10), 2), "director": MAYBE_TEXT}),
    ),
    "playlist": (
        "Two songs for running.",
        thing({"name": text(20), "songs": some(ref("song"), 2, 1)}, **{"$defs": {"song": thing({"title": text(20)})}}),
    ),
    "product": (
        "A red shirt, size M, for 19.99.",
        {
            "allOf": [
                ref("item"),
                {"properties": {"size": one("S", "M", "L"), "colour": text(10)}, "required": ["size"]},
            ],
            "$defs": {"item": thing({"sku": {"type": "string", "pattern": "^[A-Z]{2}-\\d{4}$"}, "price": MONEY})},
        },
    ),
    "contact": (
        "Write to bob@example.org.",
        thing(
            {"name": text(15)},
            {
                "email": {"type": "string", "format": "email", "maxLength": 30},
                "phone": {"pattern": "^[0-9 ]{5,12}$"} | text(),
            },
            anyOf=[{"required": ["email"]}, {"required": ["phone"]}],
        ),
    ),
    "todo": (
        "Buy milk today; call mother tomorrow.",
        thing({"todos": some(thing({"text": text(25), "done": BOOL}, {"priority": one(1, 2, 3)}), 2, 1)})
        | {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Todos", "x-version": 2},
    ),
    "answer": (
        "Is water wet?",
        thing({"thoughts": some(text(40), 2), "answer": {"anyOf": [BOOL, text(20), {"type": "number"}]}}),
    ),
    "call": (
        "Add two and three.",
        {
            "anyOf": [
                thing({"name": {"const": "add"}, "arguments": thing({"a": whole(0, 9), "b": whole(0, 9)})}),
                thing({"name": {"const": "search"}, "arguments": thing({"query": text(20)}, {"limit": whole(1, 5)})}),
            ]
        },
    ),
    "chess": (
        "White opens.",
        {"type": "string", "pattern": "^([KQRBN]?[a-h]?[1-8]?x?[a-h][1-8](=[QRBN])?|O-O(-O)?)[+#]?$"},
    ),
    "period": (
        "From March to May 2024.",
        {
            "type": "array",
            "items": [{"type": "string", "format": "date"}, {"type": "string", "format": "date"}],
            "additionalItems": False,
            "minItems": 2,
            "$schema": "http://json-schema.org/draft-07/schema#",
        },
    ),
    "grades": (
        "Ann has an A, Bob a C.",
        {"type": "object", "propertyNames": {"enum": ["Ann", "Bob"]}, "additionalProperties": one("A", "B", "C")},
    ),
    "rating": ("Four of five stars.", whole(1, 5)),
    "yes": ("Is fire hot?", one("yes", "no", None)),
    "unicode": ("Tokyo in Japanese.", thing({"name": {"const": "東京"}, "reading": one("とうきょう", "Tōkyō")})),
}
