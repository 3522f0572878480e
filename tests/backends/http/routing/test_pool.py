# SPDX-License-Identifier: Apache-2.0
"""Several servers of one model: an answer that has not begun comes from another one."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from inference_bridge import (
    GenerationTimeoutError,
    ModelLoadError,
    ServerError,
    TextModel,
    load_model,
)
from inference_bridge.backends.http.model import HttpModel
from inference_bridge.loading import aload_model

from ....parts.servers.fault_server import (
    HEAD,
    PROPS,
    Answer,
    FaultServer,
    closed_when_used_again,
    delta,
    events,
    finish,
    raw,
    reply,
    serving,
    status,
    stream,
)

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]


def said(text: str) -> Answer:
    return stream(delta(role="assistant"), delta(content=text), finish())


@contextmanager
def two(*answers: Answer, second: Answer | None = None) -> Iterator[tuple[HttpModel, list[FaultServer]]]:
    """A model on two servers, of which the first gives these answers, and the second its own."""
    with ExitStack() as stack:
        servers = [stack.enter_context(serving({CHAT: list(answers)}, native=False))]
        servers.append(stack.enter_context(serving({CHAT: [second or said("second")]}, native=False)))
        model = stack.enter_context(load_model(",".join(one.address for one in servers)))
        assert isinstance(model, HttpModel)
        yield model, servers


def ask(model: TextModel) -> str:
    return model.chat(USER).text()


async def aask(model: TextModel) -> str:
    return await model.achat(USER).text()


def chats(server: FaultServer) -> int:
    return server.paths().count(CHAT)


BROKEN: dict[str, Answer] = {
    "closed at once": raw(b""),
    "closed after the head": raw(HEAD),
    "closed after an event without text": raw(HEAD, events(delta(role="assistant"), done=False)),
    "429": status(429, b"{}"),
    "500": status(500, b"{}"),
    "502": status(502, b"<html>"),
    "503": status(503, b"{}"),
    "503 loading": status(503, b'{"error": {"message": "Loading model"}}'),
    "504": status(504, b"{}"),
    "an error event": raw(HEAD, events({"error": {"code": 503, "message": "shutting down"}}, done=False)),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("background", [False, True])
async def test_an_answer_that_has_not_begun_comes_from_another_server(fault: str, background: bool) -> None:
    with two(BROKEN[fault]) as (model, servers):
        assert (await aask(model) if background else ask(model)) == "second"
        assert [chats(server) for server in servers] == [1, 1]


@pytest.mark.parametrize("background", [False, True])
async def test_a_server_that_closes_a_kept_connection_is_asked_again(background: bool) -> None:
    """A server may do so at any time. It works, so it is not left out."""
    kept = closed_when_used_again(delta(content="kept"), finish())
    with two(kept, said("first")) as (model, servers):
        conversation = USER
        for answer in ("kept", "first", "first"):
            text = await model.achat(conversation).text() if background else model.chat(conversation).text()
            assert text == answer
            conversation = [*conversation, {"role": "assistant", "content": answer}, *USER]
        assert [chats(server) for server in servers] == [3, 0], "the second chat was sent twice, and read once"


@pytest.mark.parametrize("background", [False, True])
async def test_a_server_that_does_not_answer_in_time_is_left(background: bool) -> None:
    with serving(native=False) as slow, serving({CHAT: [said("second")]}, native=False) as quick:
        slow.answers[CHAT] = [slow.until_gone(HEAD)]
        with load_model(f"{slow.address} {quick.address}", first_token_timeout=0.5) as model:
            assert (await aask(model) if background else ask(model)) == "second"
            assert slow.gone.wait(10)


def test_the_time_of_the_operation_is_that_of_all_servers() -> None:
    with serving(native=False) as slow, serving(native=False) as other:
        for server in (slow, other):
            server.answers[CHAT] = [server.until_gone(HEAD)]
        with load_model(f"{slow.address},{other.address}") as model, pytest.raises(GenerationTimeoutError):
            model.chat(USER, timeout=0.5).text()
        assert chats(slow) + chats(other) == 1


@pytest.mark.parametrize("background", [False, True])
async def test_an_answer_that_has_begun_is_not_retried_on_another_server(background: bool) -> None:
    begun = raw(HEAD, events(delta(content="fir"), done=False))
    with two(begun) as (model, servers):
        with pytest.raises(ServerError, match="broke off") as caught:
            await aask(model) if background else ask(model)
        assert caught.value.partial is not None
        assert caught.value.partial.text == "fir"
        assert [chats(server) for server in servers] == [1, 0]
        assert ask(model) == "second", "the first one is left out"


@pytest.mark.parametrize("code", [400, 401, 404, 422])
def test_a_refusal_of_the_request_is_the_caller_s(code: int) -> None:
    with two(status(code, b"{}")) as (model, servers):
        with pytest.raises(ServerError) as caught:
            ask(model)
        assert caught.value.status == code
        assert [chats(server) for server in servers] == [1, 0]


def test_an_answer_that_can_not_be_read_is_the_caller_s() -> None:
    """The server works: another one would be asked for the same."""
    with two(stream({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})) as (model, servers):
        with pytest.raises(ServerError, match="tool call"):
            ask(model)
        assert [chats(server) for server in servers] == [1, 0]


def test_cancelling_does_not_exclude_a_server() -> None:
    with two(said("first")) as (model, servers):
        servers[0].answers[CHAT] = [servers[0].until_gone(HEAD + events(delta(content="a"), done=False)), said("first")]
        stream = model.chat(USER)
        assert next(stream).text == "a"
        stream.close()
        assert ask(model) == "first", "its conversation still goes there"
        assert model._pool is not None
        assert all(server.failures == 0 for server in model._pool.balance._servers)
        assert all(server.running == 0 for server in model._pool.balance._servers)


def test_all_servers_are_tried_again_if_all_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_bridge.backends.http.transport.transfer.FIRST_PAUSE", 0.01)
    with two(raw(b""), raw(b""), said("first"), second=raw(b"")) as (model, servers):
        assert ask(model) == "first"
        assert chats(servers[1]) >= 1


def test_the_error_states_that_all_servers_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_bridge.backends.http.transport.transfer.FIRST_PAUSE", 0.01)
    with two(raw(b""), second=status(503, b"{}")) as (model, servers):
        with pytest.raises(ServerError):
            ask(model)
        assert chats(servers[0]) + chats(servers[1]) <= 12
        assert all(server.running == 0 for server in model._pool.balance._servers)  # type: ignore[union-attr]


def test_excluding_a_server_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with two(raw(b"")) as (model, servers), caplog.at_level(logging.WARNING, "inference_bridge"):
        for _ in range(3):
            assert ask(model) == "second"
        assert sum(servers[0].address in record.message for record in caplog.records) == 1


def test_requests_other_than_generation_use_another_server_after_a_failure() -> None:
    """Counting tokens, for one."""
    native = {"/props": [reply(PROPS)], "/tokenize": [reply({"tokens": [1, 2, 3]})]}
    failing = native | {"/tokenize": [status(503, b"{}")]}
    with (
        serving(failing) as one,
        serving(native) as other,
        load_model(f"{one.address},{other.address}") as model,
    ):
        before = [server.paths().count("/tokenize") for server in (one, other)]
        assert model.count_tokens("abc") == 3
        counts = [server.paths().count("/tokenize") for server in (one, other)]
        assert [after - earlier for after, earlier in zip(counts, before, strict=True)] == [1, 1]


# ---------------------------------------------------------------- which server


def test_conversations_are_distributed_and_each_keeps_its_server() -> None:
    with two(said("first")) as (model, _):
        talks = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": str(n)}] for n in range(6)]
        where: list[list[str]] = [[] for _ in talks]
        for turn in range(3):
            for talk, places in zip(talks, where, strict=True):
                answer = model.chat(talk).text()
                places.append(answer)
                talk += [{"role": "assistant", "content": answer}, {"role": "user", "content": f"and {turn}?"}]
        assert all(len(set(places)) == 1 for places in where)
        assert {places[0] for places in where} == {"first", "second"}


def test_a_conversation_moves_to_another_server_after_a_failure_and_stays_there() -> None:
    with two(said("first"), raw(b""), said("first")) as (model, _):
        talk: list[Any] = list(USER)
        answers = []
        for _ in range(3):
            answers.append(model.chat(talk).text())
            talk += [{"role": "assistant", "content": answers[-1]}, {"role": "user", "content": "and?"}]
        assert answers == ["first", "second", "second"]


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("between", [",", ", ", " ", "\n", " , "])
def test_urls_are_separated_by_commas_or_white_space(between: str) -> None:
    with serving(native=False) as one, serving(native=False) as other, serving() as third:
        with load_model(between.join([one.address, other.address + "/v1"])) as model:
            assert isinstance(model, HttpModel)
            assert [c.base_url for c in model._pool.connections] == [one.address, other.address]  # type: ignore[union-attr]
        with pytest.raises(ModelLoadError, match="different APIs"):
            load_model(between.join([one.address, third.address]))


async def test_a_name_in_the_configuration_file_may_have_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving({CHAT: [said("a")]}, native=False) as one, serving({CHAT: [said("a")]}, native=False) as other:
        file = tmp_path / "config.toml"
        file.write_text(f'[models.pair]\nsource = "{one.address}, {other.address}"\nparallel_slots = 9\n')
        monkeypatch.setenv("INFERENCE_BRIDGE_CONFIG", str(file))
        async with await aload_model("pair") as model:
            assert await model.achat(USER).text() == "a"
            assert model.parallel == 9
        with load_model("http:pair") as model:
            assert ask(model) == "a"


def test_a_server_listed_twice_is_an_error() -> None:
    with serving(native=False) as server, pytest.raises(ValueError, match="twice"):
        load_model(f"{server.address},{server.address}/v1")


def test_a_server_that_is_not_there_yet_takes_part_later(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        absent = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with serving({CHAT: [said("here")]}, native=False) as server, load_model(f"{absent},{server.address}") as model:
        assert ask(model) == "here"
        assert any(absent in record.message for record in caplog.records)
    with pytest.raises(ServerError, match="no connection"):
        load_model(f"{absent},{absent}/other")


def props(**changes: Any) -> dict[str, list[Answer]]:
    return {"/props": [reply(PROPS | changes)]}


def models(name: str, owner: str = "vllm", **fields: Any) -> dict[str, list[Answer]]:
    return {"/v1/models": [reply({"data": [{"id": name, "owned_by": owner, **fields}]})]}


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (models("a"), models("b"), "model="),
        (models("a"), models("a", "sglang"), "different programs"),
        (
            models("a", "llamacpp", meta={"n_vocab": 5}) | props(),
            models("a", "llamacpp", meta={"n_vocab": 6}) | props(),
            "vocab_size",
        ),
        (props(chat_template="{{ messages }}"), props(), "chat template"),
    ],
)
def test_servers_of_different_models_are_refused(
    one: dict[str, list[Answer]], other: dict[str, list[Answer]], said: str
) -> None:
    with serving(one, native=False) as first, serving(other, native=False) as second:
        with pytest.raises(ModelLoadError, match=said) as caught:
            load_model(f"{first.address},{second.address}")
        assert first.address in str(caught.value)
        assert second.address in str(caught.value)


def test_several_servers_have_what_all_support_and_the_slots_of_each() -> None:
    one = props(total_slots=3, default_generation_settings={"n_ctx": 512}, modalities={"vision": True})
    other = props(total_slots=5, default_generation_settings={"n_ctx": 256})
    with (
        serving(one) as first,
        serving(other) as second,
        load_model(f"{first.address},{second.address}") as model,
    ):
        assert model.parallel == 8
        assert model.info.context_length == 256
        assert "images" not in model.capabilities


@pytest.mark.parametrize("close", [lambda model: model.close(), None])
async def test_closing_the_model_closes_every_connection(close: Callable[[HttpModel], None] | None) -> None:
    with two(said("first")) as (model, _):
        await aask(model)
        await aask(model)
        pool = model._pool
        assert pool is not None
        clients = [await connection.async_client() for connection in pool.connections]
        threads = [connection.client() for connection in pool.connections]
        if close is not None:
            close(model)
        await model.aclose()
        assert all(client.is_closed for client in threads)
        assert close is not None or all(client.is_closed for client in clients)
