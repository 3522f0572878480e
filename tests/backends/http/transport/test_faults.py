# SPDX-License-Identifier: Apache-2.0
"""Faults of servers and connections: each raises its typed error without delay, in threads and coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from inference_bridge import (
    ContextLengthExceededError,
    GenerateResult,
    GenerationTimeoutError,
    ModelClosedError,
    ServerError,
    TextModel,
    load_model,
)
from inference_bridge.backends.http.detection import server_info
from inference_bridge.backends.http.model import HttpModel
from inference_bridge.backends.http.transport import transfer
from inference_bridge.backends.http.transport.connection import Connection

from ....parts.models.tiny import auntil, until
from ....parts.servers.fault_server import (
    HEAD,
    PROPS,
    Answer,
    FaultServer,
    delta,
    events,
    finish,
    last,
    piece,
    raw,
    reply,
    serving,
    status,
    stream,
)

pytestmark = [pytest.mark.usefixtures("no_thread_stays"), pytest.mark.timeout(20)]

KEY = "the-secret-key-31415926"
PROMPT = "What nobody else may read, in whole sentences."
COMPLETION = "/completion"
TEMPLATED = PROPS | {"chat_template": "{{ messages }}"}
GOOD = stream(piece("Hello", 1, 1), piece(" there", 2, 2), last(3), done=False)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "FIRST_PAUSE", 0.01)


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def model_of(*answers: Answer, path: str = COMPLETION, **options: Any) -> Iterator[tuple[TextModel, FaultServer]]:
    with (
        serving({path: list(answers)}) as server,
        load_model(server.address, api_key=KEY, **options) as model,
    ):
        server.asked.clear()
        yield model, server


def drain(model: TextModel, mode: str, **options: Any) -> GenerateResult:
    if mode == "sync":
        return model.generate(PROMPT, **options).result()

    async def main() -> GenerateResult:
        try:
            return await model.agenerate(PROMPT, **options).result()
        finally:
            await model.aclose()

    return asyncio.run(main())


def failure(*answers: Answer, mode: str, timeout: float | None = None, **load: Any) -> ServerError:
    with model_of(*answers, **load) as (model, _), pytest.raises(ServerError) as caught:
        drain(model, mode, timeout=timeout)
    return caught.value


# ---------------------------------------------------------------- no answer


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_refused_connection_is_a_server_error() -> None:
    with pytest.raises(ServerError, match=r"no connection: .* refused.*Is the server running"):
        load_model(closed_port())


def test_an_unknown_host_is_a_server_error() -> None:
    with pytest.raises(ServerError, match="no connection"):
        load_model("http://no-such-host.invalid:1", connect_timeout=2)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses, or takes more than it says")
def test_a_server_that_accepts_no_connection_times_out() -> None:
    with socket.socket() as listening, contextlib.ExitStack() as waiting:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):  # as many as fit, and those that wait already
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listening.getsockname())
        with pytest.raises(ServerError, match="no connection within connect_timeout"):
            load_model(f"http://127.0.0.1:{listening.getsockname()[1]}", connect_timeout=0.1)


def test_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as proxy:
        monkeypatch.setenv("https_proxy", proxy.address)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with pytest.raises(ServerError, match=r"the proxy refused: 404 .*Check HTTP_PROXY"):
            load_model("https://server.invalid")


def test_a_server_that_goes_away(mode: str) -> None:
    with serving({COMPLETION: [GOOD]}) as server:
        model = load_model(server.address)
    with pytest.raises(ServerError, match="no connection") as caught:
        drain(model, mode)
    assert caught.value.status is None
    model.close()


def test_a_connection_closed_in_silence_is_tried_again(mode: str) -> None:
    with model_of(raw(), raw(), GOOD) as (model, server):
        assert drain(model, mode).text == "Hello there"
        assert server.paths() == [COMPLETION] * 3


def test_a_request_without_an_answer_ends_after_the_retry_limit(mode: str) -> None:
    with model_of(raw()) as (model, server):
        with pytest.raises(ServerError, match="closed the connection without an answer"):
            drain(model, mode)
        assert len(server.asked) == 1 + transfer.RETRIES


@pytest.mark.parametrize("head", [b"", HEAD, HEAD + events(piece("Hello", 1, 1), done=False)], ids=len)
def test_a_server_that_stalls(head: bytes, mode: str) -> None:
    with model_of(raw(b""), first_token_timeout=0.5) as (model, server):
        server.answers[COMPLETION] = [server.until_gone(head)]
        with pytest.raises(ServerError, match="first_token_timeout") as caught:
            drain(model, mode)
        assert caught.value.partial is not None
        assert caught.value.partial.text == ("Hello" if b"Hello" in head else "")
        assert server.gone.wait(5)


@pytest.mark.parametrize("head", [b"", HEAD, HEAD + events(piece("Hello", 1, 1), done=False)], ids=len)
def test_the_timeout_of_the_whole_operation(head: bytes, mode: str) -> None:
    with model_of(raw(b"")) as (model, server):
        server.answers[COMPLETION] = [server.until_gone(head)]
        with pytest.raises(GenerationTimeoutError) as caught:
            drain(model, mode, timeout=0.5)
        assert caught.value.partial is not None
        assert server.gone.wait(5)


def test_keepalive_comments_do_not_extend_the_first_token_timeout(mode: str) -> None:
    def keepalives(connection: socket.socket, _: object) -> None:
        connection.sendall(HEAD)
        while True:
            connection.sendall(b": keepalive\n\n")
            time.sleep(0.01)

    assert "no answer within 0.2 s" in str(failure(keepalives, mode=mode, first_token_timeout=0.2))


# ---------------------------------------------------------------- refusals


def test_a_wrong_key() -> None:
    with (
        serving({"/props": [status(401, b'{"error":{"message":"Invalid API Key"}}')]}) as server,
        pytest.raises(ServerError, match=r"401 Unauthorized: Invalid API Key\. Check the api_key") as caught,
    ):
        load_model(server.address, api_key=KEY)
    assert caught.value.status == 401


@pytest.mark.parametrize(
    ("code", "body", "match"),
    [
        (401, b'{"error":{"message":"no"}}', "Check the api_key"),
        (404, b'{"error":{"message":"The model x does not exist"}}', "The model x does not exist.*model's name"),
        (400, b'{"detail":[{"loc":["body"],"msg":"Field required","input":{"prompt":"%s"}}]}', "Field required"),
        (500, b"<html><body>Oops</body></html>", "500 Internal Server Error: Oops"),
        (500, b'{"error":"plain"}', "plain"),
        (418, b"", "418"),
    ],
)
def test_a_refused_request_is_not_retried(code: int, body: bytes, match: str, mode: str) -> None:
    with model_of(status(code, body)) as (model, server):
        with pytest.raises(ServerError, match=match) as caught:
            drain(model, mode)
        assert caught.value.status == code
        assert len(server.asked) == 1


@pytest.mark.parametrize("code", [429, 502, 503, 504])
def test_a_temporary_failure_is_retried(code: int, mode: str) -> None:
    with model_of(status(code, b"", Retry_After="0"), status(code), GOOD) as (model, server):
        assert drain(model, mode).text == "Hello there"
        assert len(server.asked) == 3


@pytest.mark.parametrize("code", [429, 503])
def test_retries_of_a_temporary_failure_end_after_the_limit(code: int, mode: str) -> None:
    with model_of(status(code, b'{"error":{"message":"busy"}}')) as (model, server):
        with pytest.raises(ServerError, match="busy") as caught:
            drain(model, mode)
        assert caught.value.status == code
        assert len(server.asked) == 1 + transfer.RETRIES


def test_a_long_wait_is_left_to_the_caller(mode: str) -> None:
    error = failure(status(429, b"", Retry_After="3600"), mode=mode)
    assert "it asks to wait 3600 s" in str(error)
    assert error.status == 429


def test_a_wait_beyond_the_timeout_is_not_begun(mode: str) -> None:
    error = failure(status(429, b"", Retry_After="30"), mode=mode, timeout=5)
    assert error.status == 429


LOADING = status(503, b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}')


def test_a_server_that_loads_is_waited_for(caplog: pytest.LogCaptureFixture, mode: str) -> None:
    caplog.set_level(logging.INFO, "inference_bridge")
    with model_of(*[LOADING] * 6, GOOD) as (model, server):
        assert drain(model, mode).text == "Hello there"
        assert len(server.asked) == 7
    assert "loads its model: waiting" in caplog.text


def test_loading_a_model_waits_while_the_server_loads() -> None:
    answers = [LOADING, LOADING, reply({"default_generation_settings": {"n_ctx": 7}})]
    with serving({"/props": answers}) as server, load_model(server.address) as model:
        assert model.info.context_length == 7


def test_waiting_for_a_server_that_loads_ends_at_the_first_token_timeout(mode: str) -> None:
    error = failure(LOADING, mode=mode, first_token_timeout=0.6)
    assert error.status == 503
    assert "still loads its model" in str(error)


def test_an_error_says_that_the_server_loads_its_model_if_its_last_request_had_no_answer(mode: str) -> None:
    with model_of(LOADING, first_token_timeout=0.6) as (model, server):
        server.answers[COMPLETION].append(server.until_gone())
        with pytest.raises(ServerError, match="still loads its model") as caught:
            drain(model, mode)
    assert caught.value.status == 503


def test_a_prompt_over_the_context(mode: str) -> None:
    body = b'{"error":{"code":400,"type":"exceed_context_size_error","message":"m","n_prompt_tokens":931,"n_ctx":512}}'
    with model_of(status(400, body)) as (model, _), pytest.raises(ContextLengthExceededError) as caught:
        drain(model, mode)
    assert (caught.value.prompt_tokens, caught.value.context_length) == (931, 512)


# ---------------------------------------------------------------- redirects


def test_a_redirect_of_a_generation_is_not_followed(mode: str) -> None:
    with serving() as other:
        redirect = status(307, b"", Location=other.address + COMPLETION)
        error = failure(redirect, mode=mode)
        assert other.asked == []
    assert error.status == 307
    assert "redirects are not followed" in str(error)
    assert other.address in str(error)


def test_a_redirect_while_loading_is_not_followed() -> None:
    with serving() as other, serving({"/props": [status(302, b"", Location=other.address + "/props")]}) as server:
        with pytest.raises(ServerError, match="redirects are not followed"):
            load_model(server.address, api_key=KEY)
        assert other.asked == []


# ---------------------------------------------------------------- malformed answers


BEGUN = HEAD + events(piece("Hello", 1, 1), done=False)


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (raw(BEGUN, b"data: {nonsense\n\n"), "is not JSON"),
        (raw(BEGUN, b"data: [" + b"[" * 100_000 + b"\n\n"), "is not JSON"),
        (raw(BEGUN, b"data: [1]\n\n"), "another form"),
        (raw(BEGUN, b'data: {"content": null, "tokens": 7}\n\n'), "another form"),
        (raw(BEGUN, b'data: {"content": "\xf0\x9f"}\n\n'), "is not JSON"),  # half a character
        (raw(BEGUN), "broke off"),
        (raw(BEGUN, b'data: {"content": "\xf0\x9f'), "is not JSON"),
        (raw(BEGUN, b"data: [DONE]\n\n"), "broke off"),
        (raw(BEGUN, b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'), "failed: out of memory"),
        (raw(BEGUN, b'error: {"message": "out of memory", "code": 500}\n\n'), "failed: out of memory"),
        (raw(BEGUN.replace(b"close", b"close\r\nContent-Length: 1000")), "broke off"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), "broke off"),
    ],
)
def test_an_answer_that_breaks(answer: Answer, match: str, mode: str) -> None:
    error = failure(answer, mode=mode)
    assert match in str(error)
    assert error.partial is not None
    if "chunked" not in match and error.partial.tokens:
        assert error.partial.text == "Hello"


def test_text_before_a_malformed_event_is_kept_as_the_partial_result(mode: str) -> None:
    error = failure(raw(BEGUN + b"data: {nonsense\n\n"), mode=mode)  # in one piece with it
    assert error.partial is not None
    assert error.partial.text == "Hello"


def test_an_answer_that_has_begun_is_not_requested_again(mode: str) -> None:
    with model_of(raw(BEGUN), GOOD) as (model, server):
        with pytest.raises(ServerError):
            drain(model, mode)
        assert len(server.asked) == 1


def test_an_answer_aborted_by_the_server_is_an_error() -> None:
    said = [stream(delta(content="Hello"), finish("abort"))]
    with serving({"/v1/chat/completions": said}, native=False) as server, load_model(server.address) as model:
        with pytest.raises(ServerError, match=r"http://.*/chat/completions: the server gave the answer up") as caught:
            model.chat([{"role": "user", "content": "hi"}]).text()
        assert caught.value.partial is not None
        assert caught.value.partial.text == "Hello"


def test_a_line_of_100_megabytes(mode: str) -> None:
    sent = []

    def long_line(connection: socket.socket, _: object) -> None:
        connection.sendall(HEAD + b"data: ")
        for _ in range(100):
            connection.sendall(b"x" * (1 << 20))
            sent.append(1)

    assert "is too long" in str(failure(long_line, mode=mode))
    assert len(sent) < 40


def endless(head: bytes) -> Answer:
    def answer(connection: socket.socket, _: object) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(b"x" * 65536)

    return answer


def test_a_refusal_that_never_ends(mode: str) -> None:
    error = failure(endless(b"HTTP/1.1 500 Oops\r\n\r\n"), mode=mode)
    assert error.status == 500
    assert len(str(error)) < 1000


def test_a_whole_answer_that_never_ends(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setattr(transfer, "MAX_ANSWER_BYTES", 1 << 20)
    with (
        serving({"/props": [reply(TEMPLATED)], "/apply-template": [endless(b"HTTP/1.1 200 OK\r\n\r\n")]}) as server,
        load_model(server.address) as model,
        pytest.raises(ServerError, match="longer than 1 MiB"),
    ):
        answer(model, mode)


def answer(model: TextModel, mode: str) -> str:
    """The answer to a chat, for which the prompt is rendered in one request and completed in another."""
    question = [{"role": "user", "content": "hi"}]
    return model.chat(question).text() if mode == "sync" else asyncio.run(model.achat(question).text())


@pytest.mark.parametrize(
    ("rendered", "match"),
    [
        (reply({"prompt": 3}), "the server's answer to /apply-template has no prompt in it"),
        (status(200, b"nonsense"), "its answer is not JSON"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), "the answer broke off"),
        (status(500, b'{"error": "no template"}'), "no template"),
    ],
)
def test_a_chat_whose_prompt_cannot_be_rendered_is_a_server_error(rendered: Answer, match: str, mode: str) -> None:
    answers = {"/props": [reply(TEMPLATED)], "/apply-template": [rendered]}
    with (
        serving(answers) as server,
        load_model(server.address) as model,
        pytest.raises(ServerError, match=match) as caught,
    ):
        answer(model, mode)
    assert caught.value.partial is not None


def test_closing_a_stream_while_its_prompt_is_rendered_cancels_it() -> None:
    with serving({"/props": [reply(TEMPLATED)]}) as server, load_model(server.address) as model:
        server.answers["/apply-template"] = [server.until_gone()]
        stream = model.chat([{"role": "user", "content": "hi"}])
        tokens: list[Any] = []
        reader = threading.Thread(target=lambda: tokens.extend(stream))
        reader.start()
        until(lambda: server.paths()[-1] == "/apply-template")
        stream.close()
        reader.join(5)
        assert not reader.is_alive()
        assert (tokens, stream.finish_reason) == ([], "cancelled")
        assert COMPLETION not in server.paths()


def test_a_failure_that_is_explained_is_raised_at_once(mode: str) -> None:
    """Like the failure of a managed server that has crashed: another attempt would find no server."""
    explained: list[ServerError] = []

    def explain(error: ServerError) -> ServerError:
        explained.append(error)
        return ServerError("it has crashed")

    with serving({COMPLETION: [raw()]}) as server:
        connection = Connection(server.address)
        with HttpModel("mine", lambda: connection, facts=server_info.ask(connection), explain=explain) as model:
            with pytest.raises(ServerError, match="^it has crashed$") as caught:
                drain(model, mode)
            assert caught.value.__cause__ is explained[0]
            assert server.paths().count(COMPLETION) == 1


def test_an_html_page_is_not_a_valid_answer() -> None:
    page = status(200, b"<html>Welcome</html>", Content_Type="text/html")
    with (
        serving({"/v1/chat/completions": [page]}) as server,
        load_model(server.address) as model,
        pytest.raises(ServerError, match="not a stream of events, but 'Welcome'"),
    ):
        model.chat([{"role": "user", "content": "hi"}]).result()


def test_an_address_without_an_inference_server_is_a_server_error() -> None:
    with serving({"/v1/models": [status(404)]}, native=False) as server:
        with pytest.raises(ServerError, match="404 Not Found") as caught:
            load_model(server.address)
        assert caught.value.status == 404


# ---------------------------------------------------------------- ending early


@pytest.mark.parametrize("head", [b"", HEAD, BEGUN], ids=len)
def test_closing_from_another_thread_wakes_the_reader(head: bytes) -> None:
    with model_of(raw(b"")) as (model, server):
        server.answers[COMPLETION] = [server.until_gone(head)]
        stream = model.generate(PROMPT)
        if head == BEGUN:
            next(stream)
        tokens: list[Any] = []
        reader = threading.Thread(target=lambda: tokens.extend(stream))
        reader.start()
        until(lambda: bool(server.asked))
        stream.close()
        reader.join(5)
        assert not reader.is_alive()
        assert tokens == []
        assert stream.finish_reason == "cancelled"
        assert server.gone.wait(5)


def test_closing_while_waiting_for_another_attempt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="inference_bridge")
    monkeypatch.setattr(transfer, "FIRST_PAUSE", 30.0)
    with model_of(status(503)) as (model, server):
        stream = model.generate(PROMPT)
        reader = threading.Thread(target=lambda: list(stream))
        reader.start()
        until(lambda: "trying again" in caplog.text)
        stream.close()
        reader.join(5)
        assert not reader.is_alive()
        assert len(server.asked) == 1


def test_dropping_a_stream_ends_it() -> None:
    with model_of(raw(b"")) as (model, server):
        server.answers[COMPLETION] = [server.until_gone(BEGUN)]
        stream = model.generate(PROMPT)
        next(stream)
        del stream
        assert server.gone.wait(5)


def test_leaving_an_asynchronous_stream_ends_it() -> None:
    with model_of(raw(b"")) as (model, server):
        server.answers[COMPLETION] = [server.until_gone(BEGUN)]

        async def main() -> None:
            async with model.agenerate(PROMPT) as stream:
                await anext(stream)
            assert await asyncio.to_thread(server.gone.wait, 5)
            await model.aclose()

        asyncio.run(main())


def test_cancelling_a_task_ends_its_stream() -> None:
    with model_of(raw(b"")) as (model, server):
        server.answers[COMPLETION] = [server.until_gone(BEGUN)]

        async def main() -> None:
            task = asyncio.create_task(model.agenerate(PROMPT).result())
            await auntil(lambda: bool(server.asked))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.gone.wait, 5)
            await model.aclose()

        asyncio.run(main())


def test_closing_the_model_ends_running_operations() -> None:
    with model_of(raw(b"")) as (model, server):
        server.answers[COMPLETION] = [server.until_gone(BEGUN)]
        stream = model.generate(PROMPT)
        next(stream)
        closing = threading.Timer(0.05, model.close)
        closing.start()
        with pytest.raises(ModelClosedError):
            next(stream)
        closing.join()
        assert server.gone.wait(5)
        with pytest.raises(ModelClosedError):
            model.generate(PROMPT)


def test_closing_the_model_ends_a_count_tokens_request() -> None:
    with model_of(raw(b""), path="/tokenize") as (model, server):
        server.answers["/tokenize"] = [server.until_gone()]
        closing = threading.Timer(0.05, model.close)
        closing.start()
        with pytest.raises(ModelClosedError):
            model.count_tokens("a")
        closing.join()


def test_a_stalled_stream_does_not_block_another_operation() -> None:
    with model_of(raw(b"")) as (model, server):
        server.answers[COMPLETION] = [server.until_gone(BEGUN), GOOD]
        with model.generate(PROMPT) as stalled:
            next(stalled)
            assert model.generate(PROMPT).text() == "Hello there"


# ---------------------------------------------------------------- secrets


def test_errors_logs_and_reprs_do_not_contain_the_key_or_the_prompt(
    caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    caplog.set_level(logging.DEBUG)
    said = f'{{"error": {{"message": "bad request {KEY} for: {PROMPT} and so on"}}}}'.encode()
    shown = []
    for answer in (
        status(400, said),
        status(503, said),
        raw(BEGUN, b"data: " + said + b"\n\n"),
        status(302, b"", Location="/elsewhere"),
        raw(),
    ):
        with model_of(answer) as (model, _):
            with pytest.raises(ServerError) as caught:
                drain(model, mode)
            shown += [str(caught.value), repr(caught.value), repr(model), repr(vars(model))]
    text = "\n".join([*shown, caplog.text])
    assert "bad request *** for: ***" in text
    assert KEY not in text
    assert PROMPT not in text


def test_an_error_does_not_quote_the_messages_of_a_refused_chat() -> None:
    refusal = status(400, b'{"error":{"message":"I cannot read: What nobody else may read, in whole sent"}}')
    with (
        model_of(refusal, path="/v1/chat/completions") as (model, _),
        pytest.raises(ServerError) as caught,
    ):
        model.chat([{"role": "user", "content": PROMPT}]).result()
    assert "nobody else" not in str(caught.value)


def test_the_key_is_sent_with_every_request() -> None:
    with model_of(stream(delta(content="Hi"), finish()), path="/v1/chat/completions") as (model, server):
        assert model.chat([{"role": "user", "content": "x"}]).text() == "Hi"
        assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
