# SPDX-License-Identifier: Apache-2.0
"""Reads the fields of a JSON body one by one. A field that was not read is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, overload

from .._suggest import did_you_mean
from ..options import GenerateConfig
from .errors import RequestError

T = TypeVar("T")

_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    list: "an array",
    dict: "an object",
}


class Fields:
    """The fields of a JSON object. Each must be read before `end` is called.

    Args:
        value: The parsed JSON.
        ignored: Fields that clients send and that change nothing here.
        where: The path of this object in the body, such as "stream_options.", for messages.

    Raises:
        RequestError: `value` is not an object.
    """

    def __init__(self, value: object, ignored: frozenset[str] = frozenset(), where: str = "") -> None:
        if not isinstance(value, dict):
            what = where.rstrip(".") or "the body"
            raise RequestError(400, f"{what} must be a JSON object", param=where.rstrip(".") or None)
        self._left: dict[str, Any] = {name: item for name, item in value.items() if name not in ignored}
        self._known: list[str] = []
        self._where = where

    @overload
    def take(self, name: str, kind: type[T]) -> T | None: ...
    @overload
    def take(self, name: str, kind: type[T], default: T) -> T: ...
    def take(self, name: str, kind: type[T], default: T | None = None) -> T | None:
        """Return a field of that type, or `default` if it is absent or null.

        Raises:
            RequestError: The field has another type.
        """
        value = self.take_any(name)
        if value is None:
            return default
        right = isinstance(value, (int, float) if kind is float else kind)
        if not right or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(name, f"must be {_NAMES[kind]}")
        return value  # type: ignore[no-any-return]

    def take_any(self, name: str) -> Any:
        """Return a field of any type, or None if it is absent or null."""
        self._known.append(name)
        return self._left.pop(name, None)

    def require(self, name: str, kind: type[T]) -> T:
        """Return a required field.

        Raises:
            RequestError: The field is absent, null, or has another type.
        """
        value = self.take(name, kind)
        if value is None:
            raise self.wrong(name, "is required")
        return value

    def refuse(self, name: str, *harmless: object, why: str) -> None:
        """Accept a field that is absent, null or one of `harmless`.

        Raises:
            RequestError: The field has another value.
        """
        value = self.take_any(name)
        if value is not None and not any(value == item and type(value) is type(item) for item in harmless):
            raise self.wrong(name, why)

    def end(self) -> None:
        """Raise RequestError if a field was not read."""
        for name, value in self._left.items():
            if value is not None:
                raise self.wrong(name, f"is not supported{did_you_mean(name, self._known)}")

    def wrong(self, name: str, why: str) -> RequestError:
        """Return the error for a field."""
        path = f"{self._where}{name}"
        return RequestError(400, f"{path} {why}", param=path)


def numbers(fields: Fields, names: Mapping[str, type]) -> dict[str, Any]:
    """Read the numeric fields with these names. Return those that are present."""
    values = {name: fields.take(name, kind) for name, kind in names.items()}
    return {name: value for name, value in values.items() if value is not None}


def configured(options: dict[str, Any], **names: str) -> GenerateConfig:
    """Return the options of a call.

    Args:
        options: The contract's options.
        names: The API's names of options whose names differ from the contract's.

    Raises:
        RequestError: A value is wrong. The error names its field, if it concerns one field.
    """
    try:
        return GenerateConfig(**options)
    except (TypeError, ValueError) as error:
        option, _, why = str(error).partition(" ")
        if option not in options:
            raise RequestError(400, str(error)) from None
        field = names.get(option, option)
        raise RequestError(400, f"{field} {why}", param=field) from None
