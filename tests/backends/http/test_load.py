# SPDX-License-Identifier: Apache-2.0
"""Loading from pasted URLs and keys, and defaults of options that a call does not set."""

from __future__ import annotations

import json
import pickle
import pwd
import socket
import traceback
from typing import Any

import pytest

from inference_bridge import ModelNotFoundError, ServerError, UnsupportedError, load_model
from inference_bridge.backends.http.transport import sockets
from inference_bridge.catalog import config

from ...parts.servers.fault_server import HEAD, Answer, Asked, delta, events, finish, reply, serving, status, stream

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]
HELLO = stream(delta(content="Hello"), finish())
ENDINGS = """/ /v1 /v1/ /V1 /v1/chat/completions /v1/completions /v1/embeddings /v1/models /V1/Chat/Completions /api/v1
    /api/v1/chat/completions /chat/completions /models /completion /props /health /metrics /docs /api/chat /api/tags
    /api/generate /index.html /ui/settings""".split()


def sent(asked: Asked) -> str:
    return " ".join(asked.headers.get(name, "") for name in ("authorization", "x-key", "cookie"))


def refused(connection: socket.socket, asked: Asked) -> None:
    status(400, json.dumps({"error": {"message": f"bad headers: {sent(asked)}"}}).encode())(connection, asked)


def moved(connection: socket.socket, asked: Asked) -> None:
    status(302, Location=f"http://x/?{sent(asked).strip()}")(connection, asked)


def garbled(connection: socket.socket, asked: Asked) -> None:
    connection.sendall(sent(asked).encode() + b"\r\n\r\n")


def broken(connection: socket.socket, asked: Asked) -> None:
    connection.sendall(HEAD + events(delta(content="Hello"), {"error": sent(asked)}, done=False))


@pytest.mark.parametrize("ending", ["", *ENDINGS])
def test_an_address_as_people_paste_it(ending: str) -> None:
    with serving({CHAT: [HELLO]}, native=False) as server, load_model(server.address + ending) as model:
        assert model.chat(USER).text() == "Hello"


@pytest.mark.parametrize("ending", ["", "/v1", "/V1/chat/completions"])
def test_an_api_below_a_path_is_found_there(ending: str) -> None:
    models = reply({"data": [{"id": "m"}]})
    below = {"/api/v1/models": [models], "/api" + CHAT: [HELLO]}
    with serving(below, native=False) as server, load_model(f"{server.address}/api{ending}") as model:
        assert model.chat(USER).text() == "Hello"


def test_the_error_lists_the_addresses_that_were_tried() -> None:
    with serving({"/v1/models": [reply({})]}, native=False) as server:
        server.answers.pop("/v1/models")
        with pytest.raises(ServerError) as caught:
            load_model(server.address + "/one/two")
        assert caught.value.status == 404
        for tried in ("/one/two", "/one,", f"{server.address})"):
            assert tried in str(caught.value)


def test_the_error_for_an_address_without_a_scheme_suggests_one() -> None:
    for address in ("127.0.0.1:8100", "localhost:8080/v1", "box.lan:11434"):
        with pytest.raises(ModelNotFoundError, match=f"http://{address}"):
            load_model(address)


def test_a_refused_connection_is_not_retried_while_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def pause(*_: object) -> float:
        raise AssertionError("it waits for another try")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    monkeypatch.setattr(sockets.Line, "pause", pause)
    with pytest.raises(ServerError, match="no connection"):
        load_model(f"http://127.0.0.1:{port}")


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize("around", ["{}\n", " {} ", "\r\n{}", "\t{}"])
def test_white_space_around_a_key_is_left_out(around: str) -> None:
    with serving({CHAT: [HELLO]}, native=False) as server:
        with load_model(server.address, api_key=around.format("sk-secret-1"), headers={"X-A": "b\n"}) as model:
            model.chat(USER).text()
        assert server.asked[-1].headers["authorization"] == "Bearer sk-secret-1"
        assert server.asked[-1].headers["x-a"] == "b"


@pytest.mark.parametrize("key", ["sk-secret-1\nsk-secret-2", "sk-secret-ü", "sk-secret\0", " \n", "sk\u2028secret"])
@pytest.mark.parametrize("where", ["api_key", "headers", "name"])
def test_a_key_that_can_not_be_sent_is_refused_and_not_quoted(key: str, where: str) -> None:
    ways: dict[str, Any] = {"api_key": {"api_key": key}, "headers": {"headers": {"X-A": key}}}
    options = ways.get(where, {"headers": {key: "x"}})
    with serving(native=False) as server:
        with pytest.raises(ValueError, match="header|sent") as caught:
            load_model(server.address, **options)
        assert server.asked == []
    assert "secret" not in str(caught.value)


def test_the_password_of_an_address_is_secret() -> None:
    with serving({CHAT: [stream({"error": "Who is open-sesame-1?"})]}, native=False) as server:
        address = server.address.replace("//", "//ali:open-sesame-1@")
        with load_model(address) as model, pytest.raises(ServerError) as caught:
            model.chat(USER).text()
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("address", ["ali:open-sesame-1@h:80", "ftp://ali:open-sesame-1@h", "htps://a:open-sesame-1@h"])
def test_the_password_in_an_invalid_address_is_not_shown(address: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"\*\*\*@h") as caught:
        load_model(address)
    assert "sesame" not in str(caught.value)


SECRET = "sk-0123456789abcdefghijklmnop"


@pytest.mark.parametrize(
    "options", [{"api_key": SECRET}, {"headers": {"X-Key": SECRET}}, {"headers": {"Cookie": f"a=b; s={SECRET}; c=d"}}]
)
@pytest.mark.parametrize("answer", [refused, moved, garbled, broken])
async def test_a_server_that_repeats_the_key(answer: Answer, options: dict[str, Any]) -> None:
    """Nowhere does a traceback show it, causes included, nor a pickled error."""
    with serving({CHAT: [answer]}, native=False) as server, load_model(server.address, **options) as model:
        errors = []
        with pytest.raises(ServerError) as caught:
            model.chat(USER).text()
        errors.append(caught.value)
        with pytest.raises(ServerError) as caught:
            await model.achat(USER).text()
        errors.append(caught.value)
        await model.aclose()
    for error in errors:
        shown = "".join(traceback.format_exception(error)) + repr(vars(error)) + repr(pickle.dumps(error))
        assert SECRET not in shown


# ---------------------------------------------------------------- defaults


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    ("defaults", "asked", "sent"),
    [
        (None, {}, (256, 0.0)),
        ("contract", {}, (256, 0.0)),
        ("contract", {"max_tokens": 7, "temperature": 0.5}, (7, 0.5)),
        ("server", {}, (None, None)),
        ("server", {"max_tokens": 7}, (7, None)),
    ],
)
def test_the_request_of_a_call_without_options(native: bool, defaults: Any, asked: Any, sent: Any) -> None:
    with serving({CHAT: [HELLO]}, native=native) as server, load_model(server.address, defaults=defaults) as model:
        model.chat(USER, **asked).text()
        body = server.asked[-1].json
        assert (body.get("max_tokens"), body.get("temperature")) == sent


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: object) -> Any:
        raise KeyError

    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "INFERENCE_BRIDGE_CONFIG", "INFERENCE_BRIDGE_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with serving({CHAT: [HELLO]}, native=False) as server, load_model(server.address) as model:
        assert model.chat(USER).text() == "Hello"
    assert config.load().models == {}
    with pytest.raises(ModelNotFoundError):
        load_model("a-name-that-nothing-has")


# ---------------------------------------------------------------- capabilities of each kind of server


@pytest.mark.parametrize(("owner", "honoured"), [("vllm", True), ("sglang", False), ("somebody", False)])
@pytest.mark.parametrize("constraint", [{"regex": "[0-9]+"}, {"choices": ["yes", "no"]}])
def test_constraints_are_sent_or_refused(owner: str, honoured: bool, constraint: dict[str, Any]) -> None:
    listing = reply({"data": [{"id": "m", "owned_by": owner}]})
    with serving({"/v1/models": [listing], CHAT: [HELLO]}, native=False) as server, load_model(server.address) as model:
        if honoured:
            assert model.chat(USER, **constraint).text() == "Hello"
            assert "structured_outputs" in server.asked[-1].json
        else:
            with pytest.raises(UnsupportedError, match=next(iter(constraint))):
                model.chat(USER, **constraint)
