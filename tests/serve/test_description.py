# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI description is correct, and no request body, valid or not, is answered with status 500."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import inference_bridge as ib
from inference_bridge.serve.description import BODIES

from ..parts.models.contract_models import DEMO_MODEL
from ..parts.servers.answering import Everything
from .conftest import running

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

FUZZ = settings(
    max_examples=35,  # Hypothesis draws constants of the modules that are imported: how many are accepted differs
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with (
        ib.load_model(DEMO_MODEL, context_length=256, parallel_slots=2) as model,
        running({"small": model, "everything": Everything()}) as at,
    ):
        yield at


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=address, timeout=60) as client:
        yield client


def properties(path: str) -> dict[str, Any]:
    """The fields that a body may have."""
    body = BODIES[path][1]
    return {name: one for part in body.get("anyOf", [body]) for name, one in part["properties"].items()}


def field_of(answer: httpx2.Response) -> str:
    """The field of the body that an error is about, or ""."""
    if answer.status_code == 422:  # the System One API's
        return str([*answer.json()["detail"][0]["loc"], "", ""][1])
    error = answer.json().get("error", {}) if answer.status_code == 400 else {}
    found = re.match(r"\w+", error.get("param") or error.get("message", ""))
    return found[0] if found else ""


def test_the_description_has_every_route(client: httpx2.Client) -> None:
    described = client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    for path, methods in described["paths"].items():
        for method in methods:
            answer = client.request(method, path.replace("{", "").replace("}", ""), json={})
            assert answer.status_code not in (405, 500), path
            assert "is not a route" not in answer.text


@pytest.mark.parametrize("path", BODIES)
def test_bodies_of_the_description_are_never_answered_with_500(client: httpx2.Client, address: str, path: str) -> None:
    description = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    plain: dict[str, Any] = {
        "prompt": "Hi",
        "input": "Hi",
        "tokens": [1, 2],
        "state": "Hi",
        "questions": {
            "/v1/systemone": {"a": {"type": "noul", "instructions": "Is it?"}},
            "/v1/decisions": [{"type": "predicate", "instructions": "It is."}],
        }.get(path),
        "messages": [{"role": "user", "content": "Hi"}],
    }
    answered = {True: 0, False: 0}

    @seed(0)
    @FUZZ
    @given(case=description[path]["POST"].as_strategy(), model=st.sampled_from(["small", "everything"]))
    def check(case: Any, model: str) -> None:
        body = case.body
        if isinstance(body, dict):
            body = ({"input": "Hi"} if "input" in properties(path) else {}) | body | {"model": model}
            if limits := [name for name in LIMITS if name in properties(path)]:
                body = {name: value for name, value in body.items() if name not in limits} | {limits[0]: 2}
            if "n" in body:
                body["n"] = 1
        while True:
            answer = client.post(path, json=body)
            assert answer.status_code in (200, 400, 404, 422), f"{json.dumps(body)}: {answer.text}"
            # An error after the start of a stream is an event, which must not be an unexpected one.
            assert "internal error" not in answer.text, (body, answer.text)
            name = field_of(answer)
            if answer.status_code == 200 or name not in body or (name in plain and body[name] == plain[name]):
                break
            if name in plain:  # the rest of the body may be accepted
                body[name] = plain[name]
            else:
                del body[name]
        answered[answer.status_code == 200] += 1

    check()
    assert sum(answered.values()) >= 20
    assert answered[True] >= 10 or path in ("/v1/embeddings", "/v1/rerank")  # neither model has these


@pytest.mark.parametrize("path", BODIES)
def test_other_bodies_are_never_answered_with_500(client: httpx2.Client, path: str) -> None:
    names = st.sampled_from(sorted(properties(path)))
    model = st.sampled_from(["small", "everything"])

    @seed(0)
    @FUZZ
    @given(body=JSON | st.dictionaries(names, JSON, max_size=6), name=model)
    def check(body: Any, name: str) -> None:
        if isinstance(body, dict):
            body = {"max_tokens": 1, "max_output_tokens": 1, **body, "model": name}
            body = {key: value for key, value in body.items() if key in properties(path) or key not in LIMITS}
        answer = client.post(path, json=body)
        assert answer.status_code in (200, 400, 404, 422), f"{json.dumps(body)}: {answer.text}"

    check()


@pytest.mark.parametrize("path", BODIES)
def test_every_field_of_the_description_is_known(client: httpx2.Client, path: str) -> None:
    for name in properties(path):
        answer = client.post(path, json={"model": "everything", name: {"no such": "value"}})
        assert f"{name} is not supported" not in answer.text, name
