# SPDX-License-Identifier: Apache-2.0
"""Clients: one for threads, one for each event loop; proxies, TLS and UNIX sockets."""

from __future__ import annotations

import asyncio
import gc
import shutil
import socket
import ssl
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from inference_bridge import ServerError, load_model
from inference_bridge.backends.http.model import HttpModel
from inference_bridge.backends.http.transport import transfer
from inference_bridge.backends.http.transport.call import Call
from inference_bridge.backends.http.transport.connection import Connection
from inference_bridge.backends.http.transport.sockets import Line, Transport

from ....parts.servers.fault_server import delta, finish, serving, status, stream

CHAT = {"/v1/chat/completions": [stream(delta(content="Hello"), finish())]}
USER = [{"role": "user", "content": "hi"}]


def test_one_client_for_all_threads() -> None:
    connection = Connection("http://h/")
    clients = set()
    threads = [threading.Thread(target=lambda: clients.add(connection.client())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clients == {connection.client()}
    assert connection.base_url == "http://h"
    connection.close()
    assert next(iter(clients)).is_closed


def test_one_client_for_each_event_loop() -> None:
    connection = Connection("http://h")

    async def client() -> httpx2.AsyncClient:
        first = await connection.async_client()
        assert first is await connection.async_client()
        return first

    first, second = asyncio.run(client()), asyncio.run(client())
    assert first is not second
    assert first.is_closed  # the client was closed with its event loop; no caller closed the connection
    assert second.is_closed


def test_a_model_survives_its_event_loops() -> None:
    with serving(CHAT, native=False) as server, load_model(server.address) as model:

        async def ask() -> str:
            return await model.achat(USER).text()

        assert [asyncio.run(ask()) for _ in range(3)] == ["Hello"] * 3


def test_closing_from_outside_reaches_the_clients_of_running_loops() -> None:
    connection = Connection("http://h")

    async def main() -> None:
        client = await connection.async_client()
        await asyncio.to_thread(connection.close)
        while not client.is_closed:  # noqa: ASYNC110 - a separate task closes it
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(main(), 5))


async def test_closing_a_model_waits_for_the_client_of_the_loop() -> None:
    with serving(CHAT, native=False) as server:
        model = load_model(server.address)
        assert isinstance(model, HttpModel)
        assert await model.achat(USER).text() == "Hello"
        connection = model.connection()
        client = await connection.async_client()
        await model.aclose()
        assert client.is_closed
    await Connection("http://h").aclose()  # one that has no client on this loop


def test_a_response_half_read_when_the_client_closed_is_not_read_further() -> None:
    with serving() as server:
        server.answers["/stall"] = [server.until_gone(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")]
        connection = Connection(server.address)
        with connection.client().stream("GET", server.address + "/stall") as response:
            chunks = response.iter_bytes()
            assert next(chunks) == b"some"
            connection.close()
            with pytest.raises(httpx2.ReadError, match="the connection was closed"):
                next(chunks)


async def test_a_request_that_connects_while_the_client_is_closed_leaves_no_socket_open() -> None:
    """However many steps it has taken by then."""
    with serving() as server, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for steps in range(8):
            server.answers["/slow"] = [server.until_gone(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")]
            connection = Connection(server.address)
            asked = asyncio.create_task((await connection.async_client()).get(server.address + "/slow"))
            for _ in range(steps):
                await asyncio.sleep(0)
            await connection.aclose()
            with pytest.raises((httpx2.TransportError, RuntimeError)):
                await asyncio.wait_for(asked, 20)
            del asked
        gc.collect()
    assert [str(one.message) for one in warned] == []


def test_a_thread_that_connects_while_the_client_is_closed_leaves_no_socket_open() -> None:
    connecting, closed = threading.Event(), threading.Event()
    connect = socket.create_connection

    def slowly(*arguments: Any, **options: Any) -> socket.socket:
        made = connect(*arguments, **options)
        connecting.set()
        closed.wait(20)
        return made

    errors: list[BaseException] = []

    def ask() -> None:
        try:
            connection.client().get(server.address + "/answer")
        except httpx2.TransportError as error:
            errors.append(error)

    with serving() as server, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        server.answers["/answer"] = [status(200, b"some")]
        connection = Connection(server.address)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket, "create_connection", slowly)
            thread = threading.Thread(target=ask)
            thread.start()
            assert connecting.wait(20)
        connection.close()
        closed.set()
        thread.join()
        gc.collect()
    assert [type(error) for error in errors] == [httpx2.ConnectError]
    assert [str(one.message) for one in warned] == []


def test_repr_and_errors_do_not_show_secrets() -> None:
    shown = repr(Connection("http://h", api_key="the-secret-key", headers={"X": "another-secret"}))
    shown += repr(Call("/completion", b"a secret", private=("a secret",)))
    assert "secret" not in shown
    assert shown.endswith("Call(POST /completion)")


# ---------------------------------------------------------------- proxies


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_the_environment_s_proxy(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transfer, "FIRST_PAUSE", 0.01)
    with serving(CHAT, native=False) as proxy:
        proxy.answers = {f"http://server.invalid{path}": answers for path, answers in proxy.answers.items()}
        monkeypatch.setenv(variable, proxy.address)
        with load_model("http://server.invalid") as model:
            assert model.chat(USER).text() == "Hello"
            assert asyncio.run(model.achat(USER).text()) == "Hello"
        monkeypatch.setenv("no_proxy", "server.invalid")
        with pytest.raises(ServerError, match="no connection"):
            load_model("http://server.invalid", connect_timeout=2)


def test_a_local_server_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving() as server:
        connection = Connection(server.address, trust_env=False)
        assert connection.client().get(server.address + "/props").status_code == 200
        connection.close()


# ---------------------------------------------------------------- sockets


def test_unix_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for a path short enough
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("x.sock")
        listening.listen()

        def answer() -> None:
            for _ in range(2):
                with listening.accept()[0] as connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhere")

        thread = threading.Thread(target=answer)
        thread.start()
        connection = Connection("http://name", uds="x.sock")
        assert connection.client().get("http://name/").text == "here"

        async def main() -> str:
            client = await connection.async_client()
            return (await client.get("http://name/")).text

        assert asyncio.run(main()) == "here"
        thread.join()
        connection.close()


@contextmanager
def answering_on_a_socket(answer: Callable[[socket.socket], object]) -> Iterator[Connection]:
    """A connection by a UNIX socket; `answer` has the server's end, which is then closed."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("x.sock")
        listening.listen()

        def accept() -> None:
            with listening.accept()[0] as connection:
                answer(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield Connection("http://name", uds="x.sock")
        thread.join()


def test_unix_sockets_that_refuse_leave_no_socket_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that cannot be connected, and one whose peer is refused."""
    monkeypatch.chdir(tmp_path)

    def refuse(_: socket.socket) -> None:
        raise OSError("a stranger")

    def fails(path: str, why: str) -> None:
        connection = Connection("http://name", uds=path, check_peer=refuse)
        with pytest.raises(httpx2.ConnectError, match=why):
            connection.client().get("http://name/")
        connection.close()

    with socket.socket(socket.AF_UNIX) as bound, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        bound.bind("x.sock")
        fails("none.sock", "No such file")
        fails("x.sock", "refused")
        bound.listen()
        fails("x.sock", "a stranger")
        gc.collect()
    assert [str(one.message) for one in warned] == []


async def test_faults_of_unix_sockets_are_typed_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    connection = Connection("http://name", uds="none.sock")
    with pytest.raises(httpx2.ConnectError, match="No such file"):
        await (await connection.async_client()).get("http://name/")
    await connection.aclose()
    gone = threading.Event()
    large = b"x" * (16 << 20)
    cases: list[tuple[Callable[[socket.socket], object], type[httpx2.TransportError], dict[str, Any]]] = [
        (lambda _: gone.wait(), httpx2.ReadTimeout, {"timeout": httpx2.Timeout(20, read=0.01)}),
        (lambda _: gone.wait(), httpx2.WriteTimeout, {"content": large, "timeout": httpx2.Timeout(20, write=0.01)}),
        (lambda _: None, httpx2.ReadError, {}),  # the server closes without having read the request
        (lambda one: one.recv(1), httpx2.ReadError, {"content": large}),  # nor will it: httpcore2 looks for an answer
        (lambda _: None, httpx2.ConnectTimeout, {"timeout": httpx2.Timeout(20, connect=0.0)}),
    ]
    for answer, error, options in cases:
        gone.clear()
        with answering_on_a_socket(answer) as connection:
            client = await connection.async_client()
            try:
                with pytest.raises(error):
                    await client.post("http://name/", **options)
                await connection.aclose()  # the server is still there, and does not read
            finally:
                gone.set()
            if error is httpx2.ConnectTimeout:  # the server waits still
                with socket.socket(socket.AF_UNIX) as other:
                    other.connect("x.sock")
        (tmp_path / "x.sock").unlink()


def test_a_line_wakes_whoever_waits_on_its_socket() -> None:
    with serving() as server:
        server.answers["/stall"] = [server.until_gone()]
        line = Line()
        with httpx2.Client(transport=Transport(verify=False), timeout=None) as client:
            waking = threading.Timer(0.05, line.interrupt)
            waking.start()
            with line.use(), pytest.raises(httpx2.TransportError):
                client.get(server.address + "/stall")
            waking.join()
            assert server.gone.wait(5)
            assert line.pause(0)  # for good
            assert client.get(server.address + "/props").status_code == 200  # and no other process


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for localhost, with its key."""
    openssl = shutil.which("openssl")
    if openssl is None:  # Python's ssl makes no certificates, and a key in the sources is not a secret
        pytest.skip("there is no openssl to make a certificate with")
    out, only = tmp_path / "certificate.pem", tmp_path / "only.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(out), "-out", str(only)]
    subprocess.run(command, check=True, capture_output=True)
    out.write_text(out.read_text() + only.read_text())
    return out


def test_the_certificate_is_checked(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"https://localhost:{listening.getsockname()[1]}"

        def accept() -> None:
            for _ in range(3):
                plain, _ = listening.accept()
                try:
                    with context.wrap_socket(plain, server_side=True) as connection:
                        connection.recv(65536)
                        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nhere")
                except OSError:  # the client disconnected, as this test intends
                    plain.close()

        thread = threading.Thread(target=accept)
        thread.start()
        trusting = Connection(address, ca_bundle=str(certificate), trust_env=False)
        assert trusting.client().get(address).text == "here"
        trusting.close()
        doubting = Connection(address, trust_env=False)
        with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            doubting.client().get(address)
        doubting.close()
        with pytest.raises(ServerError, match="no trusted connection: .*ca_bundle names certificates to trust"):
            load_model(address)
        thread.join()


def test_a_line_wakes_a_reader_of_tls_too(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"https://localhost:{listening.getsockname()[1]}"

        def stall() -> None:
            with context.wrap_socket(listening.accept()[0], server_side=True) as connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")
                try:
                    connection.recv(1)
                except OSError:
                    pass
                gone.set()

        serving_thread = threading.Thread(target=stall)
        serving_thread.start()
        connection = Connection(address, ca_bundle=str(certificate), trust_env=False)
        line = Line()
        with line.use(), connection.client().stream("GET", address, timeout=None) as response:
            chunks = response.iter_bytes()
            assert next(chunks) == b"some"
            waking = threading.Timer(0.05, line.interrupt)
            waking.start()
            with pytest.raises(httpx2.TransportError):
                next(chunks)
            waking.join()
        assert gone.wait(5)
        serving_thread.join()
        connection.close()
