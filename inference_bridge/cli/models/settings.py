# SPDX-License-Identifier: Apache-2.0
"""The commands `add`, `remove` and `keep-alive`, which edit the configuration file and keep its other lines."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from ..._suggest import did_you_mean
from ...availability import bridge_command, install_command
from ...backends.warm import why_not
from ...catalog import config
from ...errors import ConfigError
from . import checks, usage

if TYPE_CHECKING:
    from tomlkit import TOMLDocument


_PATHS = ("mmproj", "adapters", "draft_model", "ca_bundle")


def add(
    name: str,
    source: str,
    given: Mapping[str, Any],
    load: Mapping[str, str],
    options: Mapping[str, str],
    replace: bool = False,
) -> None:
    """Write [models.NAME], and print how to use the model.

    Args:
        name: The new name.
        source: What `load_model` takes.
        given: Fields of the entry by name. Fields that are None are left out.
        load: Load options, as they were typed.
        options: Generation options, as they were typed.
        replace: Whether to replace an entry of that name.

    Raises:
        ConfigError: The file can't be read or written.
        ModelNotFoundError: The source does not exist.
        ClickException: A setting is wrong, the model can't work, or the name is taken.
    """
    checks.check_name(name)
    source = _absolute(source)
    with _editing() as document:
        models = _models(document)
        if name in models and not replace:
            raise click.ClickException(f"a model has the name {name!r} already: --replace replaces it")
        entry: dict[str, Any] = {"source": source}
        entry |= {key: value for key, value in given.items() if value is not None}
        entry |= {key: _value(text) for key, text in load.items()}
        entry |= {key: _all_absolute(entry[key]) for key in _PATHS if key in entry}
        if options:
            entry["options"] = {key: _value(text) for key, text in options.items()}
        models[name] = entry
        path = config.config_path()
        one = _interpreted(document, ("models", name)).models[name]
        model = checks.check_model(one)
    click.echo(f"Added {name!r} ({source}) to {path}.")
    embeds = model.embeddings if model is not None else bool(one.embeddings)
    click.echo(usage.line(name, embeds, model is not None and model.ranks))


def remove(name: str) -> None:
    with _editing() as document:
        models = _models(document)
        if name not in models:
            known = ", ".join(models) or "none"
            raise click.ClickException(
                f"no model has the name {name!r}{did_you_mean(name, models)} (known names: {known})"
            )
        del models[name]
        if not models:
            del document["models"]
    click.echo(f"Removed {name!r}.")


def keep_alive(duration: str | None) -> None:
    """Set or print how long commands keep a model loaded for the next command.

    Args:
        duration: A time such as "5m". "0" or "off": models are not kept. None: print the current setting.

    Raises:
        ConfigError: The file can't be read or written.
        ClickException: The time is wrong, or models can't be kept loaded on this machine.
    """
    if duration is None:
        seconds = config.load().keep_alive
        click.echo("Models are not kept loaded." if seconds is None else f"Models are kept for {seconds:g} seconds.")
        return
    with _editing() as document:
        if duration in ("0", "off"):
            document.pop("keep_alive", None)
        else:
            document["keep_alive"] = int(duration) if duration.isdecimal() else duration
        path = config.config_path()
        seconds = _interpreted(document, ("keep_alive",)).keep_alive
        if seconds is not None and (why := why_not()):
            raise click.ClickException(f"models can't be kept loaded here: {why}")
    if seconds is None:
        told = f"`{bridge_command('stop --all')}` unloads models that are still loaded."
        click.echo(f"Each llm command loads its model again. {told}")
    else:
        click.echo(f"llm commands keep their model loaded for {seconds:g} seconds after its last use ({path}).")


def _models(document: TOMLDocument) -> Any:
    """Return the table of the named models, which is created if the file has none."""
    models = document.setdefault("models", {})
    if not isinstance(models, dict):
        raise click.ClickException(f"in {config.config_path()}, models must be tables: [models.NAME]")
    return models


def _interpreted(document: TOMLDocument, key: tuple[str, ...]) -> config.Config:
    """Interpret the edited file. Raise ClickException for a mistake in the entry `key`, and ignore other mistakes."""
    found = config.interpret(document.unwrap(), config.config_path())
    whole = ".".join(key)
    for problem in found.problems:
        if problem.key == whole or problem.key.startswith(f"{whole}."):
            setting = problem.key.rpartition(".")[2]
            told = problem.message
            raise click.ClickException(told if told.startswith(setting) else f"{setting} {told}")
    return found


def _absolute(source: str) -> str:
    """Return an existing path as an absolute one: in the file, a relative path starts at the file's directory."""
    path = os.path.expanduser(source)
    return os.path.abspath(path) if os.path.exists(path) else source


def _all_absolute(paths: Any) -> Any:
    """Return absolute paths for an option that names files. Relative ones start at the current directory."""
    if isinstance(paths, list):
        return [_all_absolute(path) for path in paths]
    return os.path.abspath(os.path.expanduser(paths)) if isinstance(paths, str) else paths


def _value(text: str) -> Any:
    """Return the TOML value (8 and 0.7 are numbers, true is a boolean, [1, 2] is a list), else the text itself."""
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


@contextlib.contextmanager
def _editing() -> Iterator[TOMLDocument]:
    """Yield the configuration file, and write it if the block raises no error. A lock keeps other commands out."""
    import fcntl

    try:
        import tomlkit
        import tomlkit.exceptions
    except ModuleNotFoundError:
        hint = f"Run: {install_command('cli')}"
        raise click.ClickException(f"editing the configuration file needs the package tomlkit. {hint}") from None

    path = os.path.realpath(config.config_path())  # it may be a link into a directory of dotfiles
    directory = os.path.dirname(path)
    with _told(path):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            with open(path, encoding="utf-8-sig") as file:
                document = tomlkit.parse(file.read())
        except FileNotFoundError:
            document = tomlkit.document()
        except (OSError, ValueError, tomlkit.exceptions.TOMLKitError) as error:
            raise ConfigError(f"{path} can't be edited: {error}") from error
        yield document
        with _told(path):
            _write(path, tomlkit.dumps(document).rstrip("\n") + "\n")
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror or error}") from error


def _write(path: str, text: str) -> None:
    """Write the file atomically, with its present permissions."""
    mode = os.stat(path).st_mode & 0o777 if os.path.exists(path) else 0o600
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".config-")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
