# SPDX-License-Identifier: Apache-2.0
"""The routes for this package's own http backend."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import inference_bridge as ib
from inference_bridge.backends.http.bridge_model import BridgeModel
from inference_bridge.backends.http.model import HttpModel

from ..parts.models.tiny_gguf import write_llama
from ..parts.servers.answering import Breaks, Everything, Unlikely
from .conftest import Serving, running

OPERATIONS = ("model", "verify", "generate", "chat", "classify", "decide", "embed", "count", "tokenize", "detokenize")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("prompt", "messages", "config", "kind", "prompts", "labels", "state", "questions", "texts", "text", "tokens")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ib.TextModel]:
    path = write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", 256)
    with ib.load_model(f"llama_cpp:{path}", threads=1, deterministic=True) as model:
        yield model


@pytest.fixture(scope="module")
def address(tiny: ib.TextModel) -> Iterator[str]:
    with running({"tiny": tiny, "everything": Everything()}) as at:
        yield at


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_body_is_never_answered_with_500(address: str, operation: str) -> None:
    config = st.fixed_dictionaries({}, optional=dict.fromkeys(("temperature", "regex", "tools", "seed"), JSON))
    sensible: dict[str, st.SearchStrategy[Any]] = {
        "prompt": st.text(max_size=20),
        "messages": st.just([{"role": "user", "content": "Hi"}]),
        "config": config.map(lambda one: one | {"max_tokens": 1}),
        "kind": st.sampled_from(["generate", "chat"]),
        "prompts": st.lists(st.text(max_size=5), max_size=2),
        "questions": st.just({"a": {"type": "noul", "instructions": "?"}}),
    }
    fields = {name: sensible.get(name, JSON) | JSON for name in FIELDS}

    @seed(0)
    @settings(
        max_examples=60, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(
        body=JSON | st.fixed_dictionaries({}, optional=fields),
        model=st.sampled_from(["tiny", "everything", "none"]),
    )
    def check(body: Any, model: str) -> None:
        if isinstance(body, dict):
            body = body | {"model": model}
        answer = client.post(f"/bridge/{operation}", json=body)
        assert answer.status_code in (200, 400, 404), f"{json.dumps(body)}: {answer.text}"
        assert "internal error" not in answer.text, (body, answer.text)

    with httpx2.Client(base_url=address, timeout=60) as client:
        check()


def test_an_unknown_operation_is_not_found(address: str) -> None:
    assert httpx2.post(f"{address}/bridge/nothing", json={}).status_code == 404


def test_every_kind_of_token_arrives(serving: Serving) -> None:
    with ib.load_model(serving({"all": Everything()})) as model, Everything() as alone:
        there, here = model.chat([{"role": "user", "content": "Hi"}]), alone.chat([{"role": "user", "content": "Hi"}])
        assert list(there) == list(here)
        assert there.finish_reason == here.finish_reason == "tool_calls"


def test_an_error_during_a_stream_arrives_with_the_partial_result(serving: Serving) -> None:
    with (
        ib.load_model(serving({"breaks": Breaks()})) as model,
        pytest.raises(ib.ServerError, match="went away") as told,
    ):
        model.chat([{"role": "user", "content": "Hi"}]).result()
    assert told.value.partial is not None
    assert told.value.partial.text == "one"


def test_a_log_probability_of_negative_infinity_arrives(serving: Serving) -> None:
    address = serving({"unlikely": Unlikely()})
    body = {"model": "unlikely", "messages": [{"role": "user", "content": "Hi"}], "config": {"logprobs": 2}}
    assert "Infinity" not in httpx2.post(f"{address}/bridge/chat", json=body).text
    with ib.load_model(address) as model:
        (token,) = model.chat([ib.Message("user", "Hi")], logprobs=2)
    assert token.logprob == token.top_logprobs[1].logprob == float("-inf")
    assert token.top_logprobs[0].logprob == -0.5


def test_errors_are_those_of_the_model(tiny: ib.TextModel, address: str) -> None:
    with ib.load_model(address, model="tiny") as model:
        with pytest.raises(ib.UnsupportedError, match="'not'") as refused:
            model.generate("x", json_schema={"not": {}})
        assert refused.value.backend == "http"
        with pytest.raises(ValueError, match="regex"):
            model.generate("x", regex="(")
        with pytest.raises(ib.ContextLengthExceededError) as long:
            model.generate("x " * 2000).text()
        assert long.value.context_length == tiny.info.context_length
    with pytest.raises(ib.ModelNotFoundError, match="tiny"):
        ib.load_model(address, model="tny")


def test_options_that_are_not_set_are_not_sent(serving: Serving) -> None:
    """Options of a configured name apply then, and a wrapped model receives no options."""
    configured = Everything()
    configured.options = frozenset({"temperature"})
    configured.defaults = ib.GenerateConfig(temperature=0.5)
    configured.recommended = ib.GenerateConfig(top_k=7)
    with ib.load_model(serving({"configured": configured})) as model:
        assert (model.defaults, model.recommended) == (configured.defaults, configured.recommended)
        assert isinstance(model, BridgeModel)
        assert model._generation("x", None, {}).config == configured._generation("x", None, {}).config


def test_a_message_names_no_file_of_the_server(address: str) -> None:
    for source in ({"path": "/etc/hostname"}, {"url": "http://127.0.0.1:9/x.png"}):
        content = [{"type": "attachment", "mime_type": "image/png", **source}]
        body = {"model": "everything", "messages": [{"role": "user", "content": content}]}
        assert httpx2.post(f"{address}/bridge/chat", json=body).status_code == 400


def test_a_server_with_another_protocol_version_is_used_as_any_openai_server(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference_bridge.backends.http.bridge_format.PROTOCOL", 99)
    monkeypatch.setattr("inference_bridge.serve.application._listed", lambda name: {"id": name})
    with ib.load_model(address, model="tiny") as model:
        assert type(model) is HttpModel
        assert model.generate("Once", max_tokens=2).result().finish_reason == "length"
