# SPDX-License-Identifier: Apache-2.0
"""Everyday schemas on each engine, with the real vocabulary: the answer satisfies them, or they are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import inference_bridge as ib
from tests.parts.models.tiny_gguf import write_with_vocabulary
from tests.parts.schemas.everyday import REFUSED, SCHEMAS

pytestmark = pytest.mark.slow

ASKED = [{"role": "user", "content": "Give an example."}]
# Tokens: as many as the longest of the shortest answers takes, a date with a time in UTC or a UUID, and some more.
ENOUGH = 64


@pytest.fixture(scope="module", params=["llama_cpp", "llama_server", "mlx"])
def model(
    request: pytest.FixtureRequest, demo_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ib.TextModel]:
    if not ib.get(request.param).availability().ok:
        pytest.skip(f"{request.param}: {ib.get(request.param).availability().reason}")
    # It is the vocabulary that a grammar is for: the real model writes the same forms, in ten times the time.
    directory = tmp_path_factory.mktemp("models")
    if request.param == "mlx":
        from tests.parts.models.mlx_tiny import write_tiny_mlx

        path = write_tiny_mlx(directory / "tiny", vocabulary=demo_model_path)
    else:
        path = write_with_vocabulary(directory / "tiny.gguf", demo_model_path)
    with ib.load_model(path, backend=request.param, context_length=512, parallel_slots=1) as model:
        yield model


def asked(model: ib.TextModel, schema: dict[str, Any]) -> ib.TokenStream:
    # The grammar alone is tested. A model this small, shown a schema, repeats itself.
    return model.chat(ASKED, json_schema=schema, schema_in_prompt=False, max_tokens=ENOUGH, temperature=1.0, seed=1)


@pytest.mark.parametrize("name", [name for name in SCHEMAS if name not in REFUSED])
def test_the_answer_satisfies_the_schema(name: str, model: ib.TextModel) -> None:
    schema = SCHEMAS[name]
    stream = asked(model, schema)
    said = stream.text()
    value = json.loads(said)
    assert stream.finish_reason == "stop"
    if not (value is None and schema.get("nullable")):  # OpenAPI's, which a validator does not know
        jsonschema.Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_schemas_are_refused_by_the_call(name: str, model: ib.TextModel) -> None:
    with pytest.raises(ib.UnsupportedError, match=f"{REFUSED[name]!r}: at #"):
        asked(model, SCHEMAS[name])
    wrapped = {"type": "object", "properties": {"a": {"type": "array", "items": SCHEMAS[name]}}}
    with pytest.raises(ib.UnsupportedError, match="#/properties/a/items"):
        asked(model, wrapped)
