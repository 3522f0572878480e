# SPDX-License-Identifier: Apache-2.0
"""Sockets that enforce the deadline of an operation, and whose blocking calls another thread can end.

In httpx2 the timeout of a read is fixed before the first byte, another thread can't end the read, and the socket of a
request is known only when the head of the answer has arrived. So the streams of a client are wrapped, through
httpcore2's interface for this.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import httpcore2
import httpx2

T = TypeVar("T")

_here = threading.local()
_in_task: ContextVar[Line | None] = ContextVar("line", default=None)


class Line:
    """The socket of one operation: its deadline, and how to interrupt it.

    `deadline` (time.monotonic) is the end of all waiting. It may be changed between two reads. `connected` becomes True
    when a new connection is made for the operation, instead of using a kept one.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self.connected = False
        self._lock = threading.RLock()  # reentrant: a signal handler may interrupt any step and end the operation
        self._stream: _Stream | None = None
        self._cut = False
        self._woken: SimpleQueue[None] = SimpleQueue()

    def interrupt(self) -> None:
        """Shut the socket down, from any thread. It wakes a thread that waits on the socket, and informs the server."""
        with self._lock:
            self._cut = True
            self._woken.put(None)
            if self._stream is not None:
                self._stream.shut_down()

    def release(self) -> None:
        """Release the socket, so that it can serve another operation."""
        with self._lock:
            if self._stream is not None:
                self._stream.line = None
                self._stream = None

    def pause(self, seconds: float) -> bool:
        """Wait. Return True if `interrupt` was called, so that the operation must end."""
        if not self._cut:
            with contextlib.suppress(Empty):
                self._woken.get(timeout=seconds)
        return self._cut

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Within the block, the requests of this thread and their answers belong to this operation."""
        before = getattr(_here, "line", None)
        _here.line = self
        try:
            yield
        finally:
            _here.line = before

    def use_in_task(self) -> None:
        """From now on, the requests of the running task must end before this operation's deadline."""
        _in_task.set(self)

    def take(self, stream: _Stream) -> None:
        with self._lock:
            if self._stream is not stream:
                self._stream = stream
                stream.line = self
                if self._cut:
                    stream.shut_down()

    def timeout(self, given: float | None) -> float | None:
        """Return the seconds that a step may take. Raises httpcore2.ReadTimeout if the deadline has passed."""
        if self.deadline is None:
            return given
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout
        return left if given is None else min(given, left)


class _Opened(Generic[T]):
    """The streams that a transport has opened.

    If a stream is being connected while httpcore2's pool is closed, the pool never closes it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a signal handler or a finalizer may close the transport in `add`
        self._streams: weakref.WeakSet[T] = weakref.WeakSet()
        self._closed = False

    def add(self, stream: T) -> bool:
        """Return False if the transport is closed. Then the caller must close the stream."""
        with self._lock:
            if not self._closed:
                self._streams.add(stream)
            return not self._closed

    def take(self) -> list[T]:
        """Refuse further streams, and return the streams to close."""
        with self._lock:
            self._closed = True
            return list(self._streams)


_CLOSED = "the client was closed"


class _Stream(httpcore2.NetworkStream):
    """A socket that is never closed while a thread is inside a call on it.

    The number of a closed file descriptor is reused for the next file that is opened. A thread that was about to wait
    on the socket would then wait on that file.
    """

    def __init__(self, stream: httpcore2.NetworkStream, opened: _Opened[_Stream]) -> None:
        """Raises httpcore2.ConnectError if the transport was closed meanwhile."""
        self._stream = stream
        self._lock = threading.RLock()
        self._inside = 0
        self._closing = False
        self.line: Line | None = None
        if not opened.add(self):
            self.close()
            raise httpcore2.ConnectError(_CLOSED)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._enter()
        try:
            line = self.line
            return self._stream.read(max_bytes, timeout if line is None else line.timeout(timeout))
        finally:
            self._leave()

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        timeout = self._begin(timeout)
        self._enter()
        try:
            self._stream.write(buffer, timeout)
        finally:
            self._leave()

    def close(self) -> None:
        with self._lock:
            self._closing = True
            if not self._inside:
                self._stream.close()
            else:
                self._shut_down()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        timeout = self._begin(timeout)
        self._enter()
        try:
            self._stream = self._stream.start_tls(ssl_context, server_hostname, timeout)
            return self
        finally:
            self._leave()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def shut_down(self) -> None:
        """Wake the threads that are inside. The socket stays open."""
        with self._lock:
            self._shut_down()

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):  # it is already closed
            # Not the method of SSLSocket, which removes the TLS state while another thread reads.
            socket.socket.shutdown(self._stream.get_extra_info("socket"), socket.SHUT_RDWR)

    def _enter(self) -> None:
        with self._lock:
            if self._closing:
                raise httpcore2.ReadError("the connection was closed")
            self._inside += 1

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._closing and not self._inside:
                self._stream.close()

    def _begin(self, timeout: float | None) -> float | None:
        line: Line | None = getattr(_here, "line", None)
        if line is None:
            return timeout
        line.take(self)
        return line.timeout(timeout)


class _Backend(httpcore2.NetworkBackend):
    def __init__(self, backend: httpcore2.NetworkBackend, check_peer: Callable[[Any], None] | None) -> None:
        self._backend = backend
        self._check_peer = check_peer
        self.opened: _Opened[_Stream] = _Opened()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        left = _connecting(getattr(_here, "line", None), timeout)
        stream = self._backend.connect_tcp(host, port, left, local_address, socket_options)
        return _Stream(stream, self.opened)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.NetworkStream:
        line = socket.socket(socket.AF_UNIX)
        try:
            with _errors(httpcore2.ConnectTimeout, httpcore2.ConnectError):
                line.settimeout(_connecting(getattr(_here, "line", None), timeout))
                line.connect(path)
                if self._check_peer is not None:
                    self._check_peer(line)
        except BaseException:
            line.close()
            raise
        return _Stream(_UnixSocket(line), self.opened)


class _UnixSocket(httpcore2.NetworkStream):
    """A connected UNIX socket. httpcore2's own backend does not close one that it could not connect."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _errors(httpcore2.ReadTimeout, httpcore2.ReadError):
            self._line.settimeout(timeout)
            return self._line.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _errors(httpcore2.WriteTimeout, httpcore2.WriteError):
            self._line.settimeout(timeout)
            self._line.sendall(buffer)

    def close(self) -> None:
        self._line.close()

    def get_extra_info(self, info: str) -> Any:
        if info == "socket":
            return self._line
        if info == "is_readable":
            if self._line.fileno() < 0:
                return True  # a read would not wait
            poll = select.poll()
            poll.register(self._line, select.POLLIN)
            return bool(poll.poll(0))
        return None


@contextlib.contextmanager
def _errors(late: type[Exception], other: type[Exception]) -> Iterator[None]:
    """Convert exceptions of a socket to those of httpcore2."""
    try:
        yield
    except TimeoutError as error:
        raise late(error) from error
    except OSError as error:
        raise other(error) from error


def _connecting(line: Line | None, timeout: float | None) -> float | None:
    """Record that a connection is made for the operation. Return the seconds that it may take."""
    if line is None:
        return timeout
    line.connected = True
    return line.timeout(timeout)


class Transport(httpx2.HTTPTransport):
    """httpx2's own transport over sockets that obey the `Line` in use."""

    def __init__(self, *, check_peer: Callable[[Any], None] | None = None, **options: Any) -> None:
        super().__init__(**options)
        # httpcore2's pools have an argument for the backend, but httpx2 does not pass it on.
        self._backend = self._pool._network_backend = _Backend(self._pool._network_backend, check_peer)

    def close(self) -> None:
        super().close()
        for stream in self._backend.opened.take():
            stream.close()


class AsyncTransport(httpx2.AsyncHTTPTransport):
    """httpx2's own asynchronous transport over sockets that obey the `Line` of the task.

    On UNIX sockets it uses asyncio's streams instead of anyio's: with anyio's, asyncio logs an error if a task is
    cancelled at the moment in which its socket becomes readable.
    """

    def __init__(self, *, check_peer: Callable[[Any], None] | None = None, **options: Any) -> None:
        super().__init__(**options)
        uds = options.get("uds") is not None
        self._backend = _AsyncBackend(_UnixBackend(check_peer) if uds else self._pool._network_backend)
        self._pool._network_backend = self._backend

    async def aclose(self) -> None:
        await super().aclose()
        for stream in self._backend.opened.take():
            await stream.aclose()


def _left(timeout: float | None) -> float | None:
    line = _in_task.get()
    return timeout if line is None else line.timeout(timeout)


class _AsyncStream(httpcore2.AsyncNetworkStream):
    """A socket of which each step ends at the operation's deadline."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        return await self._stream.read(max_bytes, _left(timeout))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, _left(timeout))

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore2.AsyncNetworkStream:
        self._stream = await self._stream.start_tls(ssl_context, server_hostname, _left(timeout))
        return self

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _AsyncBackend(httpcore2.AsyncNetworkBackend):
    def __init__(self, backend: httpcore2.AsyncNetworkBackend) -> None:
        self._backend = backend
        self.opened: _Opened[_AsyncStream] = _Opened()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        left = _connecting(_in_task.get(), timeout)
        return await self._keep(await self._backend.connect_tcp(host, port, left, local_address, socket_options))

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        left = _connecting(_in_task.get(), timeout)
        return await self._keep(await self._backend.connect_unix_socket(path, left, socket_options))

    async def _keep(self, stream: httpcore2.AsyncNetworkStream) -> _AsyncStream:
        kept = _AsyncStream(stream)
        if not self.opened.add(kept):
            await kept.aclose()
            raise httpcore2.ConnectError(_CLOSED)
        return kept


class _UnixBackend(httpcore2.AsyncNetworkBackend):
    def __init__(self, check_peer: Callable[[Any], None] | None) -> None:
        self._check_peer = check_peer

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore2's interface
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                stream = _UnixStream(*await asyncio.open_unix_connection(path))
            if self._check_peer is not None:
                try:
                    self._check_peer(stream.get_extra_info("socket"))
                except OSError:
                    await stream.aclose()
                    raise
            return stream
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout from error
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from error


class _UnixStream(httpcore2.AsyncNetworkStream):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        try:
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)
        except TimeoutError as error:
            raise httpcore2.ReadTimeout from error
        except OSError as error:
            raise httpcore2.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()
        except TimeoutError as error:
            raise httpcore2.WriteTimeout from error
        except OSError as error:
            raise httpcore2.WriteError(str(error)) from error

    async def aclose(self) -> None:
        # Not close(), which first sends the remaining data, to a server that may have stopped reading.
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self._reader.at_eof()
        return self._writer.get_extra_info(info)
