# SPDX-License-Identifier: Apache-2.0
"""The fields of a JSON body."""

from __future__ import annotations

from typing import Any

import pytest

from inference_bridge.serve.errors import RequestError
from inference_bridge.serve.fields import Fields


def test_an_unknown_field_is_an_error_with_its_name() -> None:
    fields = Fields({"model": "a", "temprature": 1})
    fields.require("model", str)
    fields.take("temperature", float)
    with pytest.raises(RequestError, match="did you mean 'temperature'") as caught:
        fields.end()
    assert (caught.value.status, caught.value.param) == (400, "temprature")


def test_ignored_and_null_fields_are_accepted() -> None:
    fields = Fields({"user": "me", "seed": None}, frozenset({"user"}))
    fields.end()


@pytest.mark.parametrize(
    ("value", "kind"),
    [("1", int), (True, int), (1.5, int), (True, float), ("a", list), ([], dict), (0, bool), (1, str)],
)
def test_a_wrong_type_is_an_error_with_the_path(value: Any, kind: type[Any]) -> None:
    with pytest.raises(RequestError) as caught:
        Fields({"n": value}, where="outer.").take("n", kind)
    assert caught.value.param == "outer.n"


def test_an_integer_is_a_number() -> None:
    assert Fields({"n": 1}).take("n", float) == 1


def test_refuse_takes_the_harmless_values_alone() -> None:
    Fields({"echo": False}).refuse("echo", False, why="is not supported")
    Fields({}).refuse("echo", False, why="is not supported")
    for value in (True, 0):
        with pytest.raises(RequestError):
            Fields({"echo": value}).refuse("echo", False, why="is not supported")


@pytest.mark.parametrize("value", [[], "a", None, 1])
def test_a_body_that_is_not_an_object_is_an_error(value: Any) -> None:
    with pytest.raises(RequestError):
        Fields(value)
