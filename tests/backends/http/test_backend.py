# SPDX-License-Identifier: Apache-2.0
"""The http backend: addresses, detection of servers, keys and configured names."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import re
from pathlib import Path
from typing import Any

import pytest

from inference_bridge import (
    BackendUnavailableError,
    EmbeddingModel,
    ModelClosedError,
    ModelLoadError,
    ModelNotFoundError,
    ServerError,
    StatsModel,
    UnsupportedError,
    get,
    load_model,
)
from inference_bridge.availability import install_command
from inference_bridge.backends.http.model import HttpModel

from ...parts.models.tiny import auntil
from ...parts.servers.fault_server import PROPS, delta, finish, reply, serving, status, stream
from ...parts.servers.processes import llama_cpp_server

KEY = "the-secret-key-31415926"
CHAT = "/v1/chat/completions"
HELLO = stream(delta(content="Hello"), finish())
USER = [{"role": "user", "content": "hi"}]


def listing(*names: str, owner: str | None = "somebody", **fields: Any) -> Any:
    owned = {} if owner is None else {"owned_by": owner}
    return reply({"object": "list", "data": [{"id": name, "object": "model", **owned, **fields} for name in names]})


def loaded(**options: Any) -> HttpModel:
    model = load_model(**options)
    assert isinstance(model, HttpModel)
    return model


# ---------------------------------------------------------------- the backend


@pytest.mark.parametrize(
    ("source", "can"),
    [("http://x", True), ("HTTPS://x:8/v1", True), ("http:x", False), ("/model.gguf", False), ("ftp://x", False)],
)
def test_the_backend_accepts_urls(source: str, can: bool) -> None:
    assert get("http").can_load(source) is can


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name == "httpx2" else found(name, package)

    monkeypatch.setattr("inference_bridge.backends.http.backend.find_spec", find_spec)
    with pytest.raises(BackendUnavailableError, match=re.escape(install_command("http"))):
        load_model("http://127.0.0.1:1", backend="http")


def test_load_options_of_models_on_this_machine_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="gpu_layers"):
        load_model("http://127.0.0.1:1", gpu_layers=3)
    with pytest.raises(TypeError, match="mapping of fields"):
        load_model("http://127.0.0.1:1", extra=["--flag"])


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_the_address_of_a_server_or_of_its_api(ending: str) -> None:
    with serving({CHAT: [HELLO]}, native=False) as server, load_model(server.address + ending) as model:
        assert model.chat(USER).text() == "Hello"


@pytest.mark.parametrize("api", ["/openai", "/openai/v1"])
def test_an_api_below_a_path(api: str) -> None:
    answers = {f"{api}/models": [listing("m")], f"{api}/chat/completions": [HELLO]}
    with serving(answers, native=False) as server, load_model(server.address + "/openai") as model:
        assert model.chat(USER).text() == "Hello"


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("http://h/?key=1", r"\? or #"),
        ("http://h/#x", "or #"),
        ("http://h:port", "not the URL"),
        ("http:///v1", "no host"),
    ],
)
def test_invalid_addresses_are_refused(url: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_model(url, backend="http")


def test_credentials_in_the_address_are_sent_and_not_shown() -> None:
    with serving() as server, load_model(server.address.replace("//", "//me:pass-word@")) as model:
        assert server.asked[0].headers["authorization"] == "Basic bWU6cGFzcy13b3Jk"
        assert isinstance(model, HttpModel)
        assert "pass-word" not in repr(model.connection()) + model.connection().base_url
    with pytest.raises(ValueError, match="use one of them"):
        load_model("http://me:pass@127.0.0.1:1", api_key=KEY)


def test_headers() -> None:
    with serving({CHAT: [HELLO]}, native=False) as server:
        with load_model(server.address, headers={"X-Team": "blue-team-7"}) as model:
            model.chat(USER).text()
            assert isinstance(model, HttpModel)
            assert "blue-team-7" not in repr(model.connection())
        assert {asked.headers["x-team"] for asked in server.asked} == {"blue-team-7"}


# ---------------------------------------------------------------- detection of servers


def test_a_llama_server() -> None:
    props = PROPS | {"total_slots": 3, "modalities": {"vision": True, "audio": False}}
    with serving({"/props": [reply(props)]}) as server:
        model = loaded(source=server.address)
        assert model.facts.server == "llama.cpp"
        assert model.facts.native
        assert (model.parallel, model.info.context_length, model.info.vocab_size) == (3, 512, 9)
        assert {"token_ids", "images", "json_schema", "logprobs"} <= model.capabilities
        assert not {"reasoning", "audios", "logits", "embeddings"} & model.capabilities
        model.close()


@pytest.mark.parametrize(
    ("template", "capability"),
    [("{% if enable_thinking %}", "reasoning"), ("{{ reasoning_effort }}", "reasoning"), ("{{ messages }}", "tools")],
)
def test_capabilities_are_read_from_the_template(template: str, capability: str) -> None:
    with serving({"/props": [reply(PROPS | {"chat_template": template})]}) as server:
        model = loaded(source=server.address)
        assert capability in model.capabilities
        model.close()


def test_reasoning_options_follow_the_template() -> None:
    props = PROPS | {"chat_template": "{% if enable_thinking %}<think>{% endif %}"}
    with serving({"/props": [reply(props)], CHAT: [HELLO]}) as server, load_model(server.address) as model:
        assert model.chat(USER, reasoning=False).text() == "Hello"
        assert server.asked[-1].json["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
        with pytest.raises(UnsupportedError, match="reasoning='low'"):
            model.chat(USER, reasoning="low")


@pytest.mark.parametrize(
    ("owner", "kind"),
    [("vllm", "vllm"), ("sglang", "sglang"), ("me", "llama-cpp-python"), ("llamacpp", "llama.cpp"), ("openai", "")],
)
def test_other_servers(owner: str, kind: str) -> None:
    with serving({"/v1/models": [listing("m", owner=owner, max_model_len=77)]}, native=False) as server:
        model = loaded(source=server.address)
        assert (model.facts.server, model.facts.native, model.facts.model) == (kind, False, "m")
        assert model.info.context_length == 77
        model.close()


def test_raw_prompts_go_to_completions() -> None:
    said = stream({"choices": [{"text": " Paris", "finish_reason": "stop"}]})
    answers = {"/v1/completions": [said], "/v1/models": [listing("m", owner="vllm")]}
    with serving(answers, native=False) as server, load_model(server.address) as model:
        assert model.generate("The capital of France is", stop_tokens=[7]).text() == " Paris"
        sent = server.asked[-1].json
        assert (sent["prompt"], sent["stop_token_ids"]) == ("The capital of France is", [7])
        with pytest.raises(ServerError, match="json_schema"):  # " Paris" is not JSON
            model.generate("The capital of France is", json_schema={}).text()
        assert "response_format" in server.asked[-1].json


def test_tokens_are_counted_by_each_server_s_endpoint() -> None:
    for owner in ("vllm", "sglang"):
        with serving({"/v1/models": [listing("m", owner=owner)]}, native=False) as server:
            model = loaded(source=server.address)
            server.answers["/tokenize"] = [reply({"count": 3}), reply({"tokens": 3} if owner == "vllm" else [])]
            assert model.count_tokens("a b c") == 3
            assert server.asked[-1].json == {"prompt": "a b c", "add_special_tokens": False, "model": "m"}
            with pytest.raises(ServerError, match="no 'count'"):
                model.count_tokens("a b c")
            model.close()
    with serving({"/v1/models": [listing("m", owner="openai")]}, native=False) as server:
        model = loaded(source=server.address)
        with pytest.raises(UnsupportedError, match="count_tokens"):
            model.count_tokens("a b c")
        with pytest.raises(UnsupportedError, match="the server has it for chats only"):
            model.generate("a", json_schema={})
        with pytest.raises(UnsupportedError, match="the API has degrees of it"):
            model.chat(USER, reasoning=True)
        model.close()


def test_counts_of_llama_cpp_python_exclude_added_tokens(demo_model_path: Path) -> None:
    with llama_cpp_server(demo_model_path) as address, loaded(source=address) as model:
        assert model.facts.server == "llama-cpp-python"
        assert model.count_tokens("") == 0
        assert model.count_tokens("one two three") == 3


def test_mlx_lm_s_server_is_detected_by_its_server_header() -> None:
    models = status(200, b'{"data": [{"id": "a"}, {"id": "b"}]}', Server="BaseHTTP/0.6 Python/3.11.7")
    with serving({"/v1/models": [models], CHAT: [HELLO]}, native=False) as server:
        model = loaded(source=server.address)
        assert model.facts.server == "mlx-lm"
        assert model.chat(USER).text() == "Hello"
        assert "model" not in server.asked[-1].json  # it takes the one it was started with
        with pytest.raises(UnsupportedError, match="json_schema"):
            model.chat(USER, json_schema={})
        with pytest.raises(UnsupportedError, match="can't force a call"):
            model.chat(USER, tools=[{"name": "f"}], tool_choice="required")
        model.close()


def test_one_of_several_models_must_be_named() -> None:
    with serving({"/v1/models": [listing("big", "small")], CHAT: [HELLO]}, native=False) as server:
        with pytest.raises(ModelNotFoundError, match="choose one with model=.*big, small"):
            load_model(server.address)
        with load_model(server.address, model="small") as model:
            model.chat(USER).text()
        assert server.asked[-1].json["model"] == "small"


def test_extra_fields_go_into_every_request() -> None:
    with serving({CHAT: [HELLO]}, native=False) as server, load_model(server.address, extra={"user": "me"}) as model:
        model.chat(USER, temperature=0.5).text()
        sent = server.asked[-1].json
        assert (sent["user"], sent["temperature"]) == ("me", 0.5)


# ---------------------------------------------------------------- embeddings


def vectors(*values: list[float]) -> Any:
    return reply({"data": [{"index": index, "embedding": value} for index, value in enumerate(values)][::-1]})


def test_embeddings() -> None:
    answers = [vectors([1.0, 0.0]), vectors([1.0, 2.0], [3.0, 4.0]), vectors([5.0, 6.0])]
    with serving({"/v1/embeddings": answers}) as server, load_model(server.address) as model:
        assert "embeddings" in model.capabilities
        assert isinstance(model, EmbeddingModel)
        assert model.info.hidden_size == 2
        assert model.embed(["a", "b"]) == [[1.0, 2.0], [3.0, 4.0]]
        assert server.asked[-1].json == {"input": ["a", "b"], "model": "m"}
        assert model.embed([]) == []
        assert isinstance(model, StatsModel)
        assert model.stats().operations == 1
        assert model.metrics.total_seconds > 0
        with pytest.raises(ServerError, match="1 embeddings for 2 texts"):
            model.embed(["a", "b"])
        server.answers["/v1/embeddings"] = [reply({"data": "none"})]
        with pytest.raises(ServerError, match="no embeddings in it"):
            model.embed(["a"])
        for value in (math.nan, math.inf):
            server.answers["/v1/embeddings"] = [vectors([1.0, value])]
            with pytest.raises(ServerError, match="NaN"):
                model.embed(["a"])


async def test_embeddings_of_coroutines() -> None:
    with (
        serving({"/v1/embeddings": [vectors([1.0]), vectors([2.0])]}) as server,
        loaded(source=server.address) as model,
    ):
        assert isinstance(model, EmbeddingModel)
        assert await model.aembed(["a"]) == [[2.0]]
        assert await model.aembed([]) == []
        server.answers["/v1/embeddings"] = [status(400, b'{"error": "too long"}')]
        with pytest.raises(ServerError, match="too long"):
            await model.aembed(["a"])
        server.answers["/v1/embeddings"] = [server.until_gone()]
        waiting = asyncio.create_task(model.aembed(["a"]))
        await auntil(lambda: server.paths().count("/v1/embeddings") == 4)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        waiting = asyncio.create_task(model.aembed(["a"]))
        await auntil(lambda: server.paths().count("/v1/embeddings") == 5)
        await asyncio.to_thread(model.close)
        with pytest.raises(ModelClosedError):
            await waiting
        assert waiting.cancelling() == 0


def test_a_server_without_them() -> None:
    with serving() as server, load_model(server.address) as model:
        assert not isinstance(model, EmbeddingModel)


# ---------------------------------------------------------------- keys and names


def test_a_configured_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_BRIDGE_CONFIG", str(home / "config.toml"))
    monkeypatch.setenv("BOX_KEY", KEY)
    with serving({CHAT: [HELLO], "/v1/models": [listing("big", "small")]}, native=False) as server:
        (home / "config.toml").write_text(
            f'[models.box]\nsource = "{server.address}"\nmodel = "small"\napi_key_env = "BOX_KEY"\n'
            f'first_token_timeout = 5\nheaders = {{ X-Team = "blue" }}\n[models.box.options]\ntemperature = 0.25\n'
        )
        with load_model("box") as model:
            assert model.chat(USER).text() == "Hello"
        asked = server.asked[-1]
        assert asked.headers["authorization"] == f"Bearer {KEY}"
        assert asked.headers["x-team"] == "blue"
        assert (asked.json["model"], asked.json["temperature"]) == ("small", 0.25)


def test_a_ca_bundle_is_looked_at_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="ca_bundle"):
        load_model("https://127.0.0.1:1", ca_bundle=str(tmp_path / "none.pem"))
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(ModelLoadError, match="no certificates"):
        load_model("https://127.0.0.1:1", ca_bundle=str(tmp_path / "empty.pem"))
    with pytest.raises(ServerError, match="no connection"):
        load_model("https://127.0.0.1:1", ca_bundle=str(tmp_path))  # a directory is looked into when it is needed
