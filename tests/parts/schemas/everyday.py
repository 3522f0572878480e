# SPDX-License-Identifier: Apache-2.0
"""Schemas as pydantic, dataclasses, TypedDict, zod and schemars write them."""

from __future__ import annotations

import datetime
import decimal
import enum
import ipaddress
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AnyUrl, BaseModel, ConfigDict, Field, HttpUrl, NegativeInt, PositiveFloat, TypeAdapter
from typing_extensions import TypedDict


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    barks: bool


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int
    b: str | None = None


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


@dataclass
class Point:
    x: float
    y: float = 0.0


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


PYTHON: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "none": None,
    "optional": int | None,
    "list of int": list[int],
    "list of optional": list[str | None],
    "tuple": tuple[int, str],
    "dict": dict[str, int],
    "dict of enum": dict[Colour, int],
    "set of literals": set[Literal["a", "b", "c", "d"]],
    "frozenset of bool": frozenset[bool],
    "literal": Literal["a", 1, True, None],
    "enum": Colour,
    "bounded int": Annotated[int, Field(ge=0, lt=10)],
    "positive float": PositiveFloat,
    "negative int": NegativeInt,
    "multiple": Annotated[int, Field(multiple_of=5)],
    "pattern": Annotated[str, Field(pattern=r"^[a-z]{2,5}$")],
    "length": Annotated[str, Field(min_length=2, max_length=5)],
    "list length": Annotated[list[int], Field(min_length=1, max_length=3)],
    "date": datetime.date,
    "datetime": datetime.datetime,
    "time": datetime.time,
    "timedelta": datetime.timedelta,
    "uuid": uuid.UUID,
    "decimal": decimal.Decimal,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "url": AnyUrl,
    "http url": HttpUrl,
    "bytes": bytes,
    "any": Any,
    "union": int | list[str] | Closed,
    "discriminated": Annotated[Cat | Dog, Field(discriminator="kind")],
    "tree": Tree,
    "closed": Closed,
    "open": Open,
    "dataclass": Point,
    "typed dict": Movie,
    "extra": Annotated[float, Field(json_schema_extra={"unit": "kg", "ui:widget": "range"})],
    "set of int": set[int],
}


def text(**more: Any) -> dict[str, Any]:
    return {"type": "string", **more}


ZOD: dict[str, Any] = {
    "email": text(
        format="email",
        pattern=r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
    ),
    "uuid": text(
        format="uuid",
        pattern=(
            r"^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[1-8][0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
            r"|00000000-0000-0000-0000-000000000000)$"
        ),
    ),
    "hostname": text(
        format="hostname",
        pattern=(
            r"^(?=.{1,253}\.?$)[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
            r"(?:\.[a-zA-Z0-9](?:[-0-9a-zA-Z]{0,61}[0-9a-zA-Z])?)*\.?$"
        ),
    ),
    "duration": text(
        format="duration",
        pattern=(r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$"),
    ),
    "cuid": text(format="cuid", pattern=r"^[cC][^\s-]{8,}$"),
    "ulid": text(format="ulid", pattern="^[0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{26}$"),
    "nanoid": text(format="nanoid", pattern="^[a-zA-Z0-9_-]{21}$"),
    "jwt": text(format="jwt"),
    "e164": text(format="e164", pattern=r"^\+[1-9]\d{6,14}$"),
    "int": {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
    "strict object": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "record": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "number"}},
    "no double letter": text(pattern=r"^(?!.*--)[a-z-]{2,9}(?<!-)$"),
    "password": text(pattern=r"^(?=.*[A-Z])(?=.*\d)[A-Za-z\d]{8,}$"),
}

SCHEMARS: dict[str, Any] = {
    "usize": {"type": "integer", "format": "uint", "minimum": 0},
    "u8": {"type": "integer", "format": "uint8", "minimum": 0, "maximum": 255},
    "u64": {"type": "integer", "format": "uint64", "minimum": 0.0},
    "u128": {"type": "integer", "format": "uint128", "minimum": 0},
    "i32": {"type": "integer", "format": "int32"},
    "f32": {"type": "number", "format": "float"},
    "option": {"type": ["string", "null"]},
    "nullable": text(nullable=True),
    "enum": {"oneOf": [{"type": "string", "const": "A", "description": "first"}, {"type": "string", "const": "B"}]},
    "tagged": {
        "oneOf": [
            {"type": "object", "properties": {"t": text(const="X"), "n": {"type": "integer"}}, "required": ["t", "n"]},
            {"type": "object", "properties": {"t": text(const="Y")}, "required": ["t"]},
        ]
    },
    "reference": text(format="uri-reference"),
}

SCHEMAS: dict[str, Any] = {
    **{f"python {name}": TypeAdapter(kind).json_schema() for name, kind in PYTHON.items()},
    **{f"zod {name}": schema for name, schema in ZOD.items()},
    **{f"schemars {name}": schema for name, schema in SCHEMARS.items()},
}

REFUSED = {"python set of int": "uniqueItems", "zod jwt": "format"}
"""Those that can't be enforced, and the keyword that is named."""
