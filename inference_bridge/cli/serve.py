# SPDX-License-Identifier: Apache-2.0
"""The command `serve`: runs the ASGI application of `inference_bridge.serve` on a socket."""

from __future__ import annotations

import ipaddress
import os
import secrets
import shlex
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from .. import registry
from ..availability import bridge_command, install_command
from ..catalog import config, discovery

GRACE_SECONDS = 10
"""Time for running requests to end after a stop signal."""

HEAD_SECONDS = 20
"""Time after which a connection without a request is closed."""


@dataclass(frozen=True)
class Settings:
    """The options of the command."""

    models: Sequence[str]
    aliases: Sequence[str]
    host: str
    port: int
    key: bool
    hosts: Sequence[str]
    origins: Sequence[str]
    keep_alive: float | None
    max_models: int | None
    memory_limit: int | None
    max_queue: int
    max_connections: int
    preload: bool
    verbose: bool


def serve(settings: Settings) -> None:
    """Serve until the process is told to stop (SIGINT or SIGTERM)."""
    try:
        import uvicorn

        from ..serve import app
        from ..serve.connections import bounded
        from ..serve.guard import host_name, web_origin
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"The command needs Starlette and uvicorn. Run: {install_command('serve')}"
        ) from error

    loopback = _is_loopback(settings.host)
    if not settings.key and not loopback:
        raise click.UsageError("--no-key is allowed only on a loopback address: other machines could use the server")
    _check("--allow-host", settings.hosts, host_name)
    _check("--cors", settings.origins, web_origin)
    key_file = _key_file() if settings.key else None
    named = {source: source for source in settings.models}
    for name, source in map(_alias, settings.aliases):
        if named.setdefault(name, source) != source:
            raise click.UsageError(f"two models are served as {name!r}")
    if settings.preload and not named:
        raise click.UsageError("--preload needs a MODEL or an --alias")
    served = app(
        named,
        any_listed=None if named else listed,
        key=key_file.read_text(encoding="ascii").strip() if key_file is not None else None,
        hosts=[*_hosts(settings.host), *settings.hosts] if loopback else (settings.hosts or None),
        origins=settings.origins,
        keep_alive=settings.keep_alive,
        max_models=settings.max_models,
        memory_limit=settings.memory_limit,
        max_queue=settings.max_queue,
        preload=settings.preload,
    )
    with _bound(settings.host, settings.port) as listener:
        _announce(listener, key_file, list(named))
        level = "info" if settings.verbose else "warning"
        options = uvicorn.Config(
            served,
            log_level=level,
            access_log=settings.verbose,
            server_header=False,
            http=bounded(HEAD_SECONDS),
            limit_concurrency=settings.max_connections,
            timeout_graceful_shutdown=GRACE_SECONDS,
            h11_max_incomplete_event_size=64 << 10,
        )
        uvicorn.Server(options).run(sockets=[listener])


def listed() -> Iterable[str]:
    """Return the names of the configured and the discovered models. Clients can't name paths or URLs."""
    backends = [backend for name in registry.names() if registry.availability(backend := registry.get(name))]
    yield from config.load().models
    for model in discovery.discover():
        if model.problem is None and any(registry.can_load(backend, model.path) is True for backend in backends):
            yield model.name


def _alias(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not (name and equals and source):
        raise click.UsageError(f"--alias {text!r} must be NAME=SOURCE")
    return name, source


def _check(option: str, values: Iterable[str], check: Callable[[str], object]) -> None:
    for value in values:
        try:
            check(value)
        except ValueError as error:
            raise click.UsageError(f"{option} {error}") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _hosts(host: str) -> list[str]:
    from ..serve.guard import LOOPBACK

    return [*LOOPBACK, f"[{host}]" if ":" in host else host]


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only if the socket has its protocol number. Without TCP_NODELAY, each answer on a
    # connection that is kept open waits 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise click.ClickException(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


def _key_file() -> Path:
    """Return the file with this user's key. It is created if it does not exist."""
    import platformdirs

    directory = Path(platformdirs.user_state_dir("inference-bridge"))
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = directory / "serve-key"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.is_symlink() or path.stat().st_mode & 0o077 or not path.read_text(encoding="ascii").strip():
            why = f"{path} must hold a key, and only you may have access to it: delete it, and a new one is created"
            raise click.ClickException(why) from None
        return path
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
    return path


def _announce(listener: socket.socket, key_file: Path | None, models: Sequence[str]) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    click.echo(f"Serving at {url}", err=True)
    every = f"every model that `{bridge_command('models')}` lists"
    click.echo(f"Models: {', '.join(models) or every}", err=True)
    header = ""
    if key_file is not None:
        click.echo(f"API key: in {key_file}", err=True)
        header = f' -H "Authorization: Bearer $(cat {shlex.quote(str(key_file))})"'
    click.echo(f"Try: curl {url}/models{header}", err=True)
