# SPDX-License-Identifier: Apache-2.0
"""The configuration file: named models, and directories to search for models.

    directories = ["~/models"]
    keep_alive = "5m"                                     # how long `llm` commands keep a model loaded for the next one
    prefix_cache_size = "2GiB"                            # maximum size on disk of the prefix cache of `llm` commands
    llama_server = "~/llama.cpp/build/bin/llama-server"   # the program that the backend llama_server runs
    rocm_llama_server = "~/llama.cpp/hip/bin/llama-server"

    [models.coder]
    source = "~/models/Qwen3-Coder-30B-Q4_K_M.gguf"   # any source that load_model accepts
    backend = "llama_cpp"                             # optional
    context_length = 32768                            # any field of LoadConfig

    [models.coder.options]                            # any field of GenerateConfig
    temperature = 0.7

    [models.gpu-box]
    source = "https://gpu.example:8443"
    api_key_env = "GPU_BOX_KEY"                       # the environment variable that contains the key
    embeddings = true                                 # optional: it is an embedding model and does not generate text

It is `config.toml` in the platform's configuration directory for "inference-bridge"
(on Linux ~/.config/inference-bridge), or the file that INFERENCE_BRIDGE_CONFIG names. Paths in
it may begin with ~ and are otherwise relative to the file's directory.
INFERENCE_BRIDGE_MODELS adds directories, separated as in PATH.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .._cache.directories import user_directory
from .._suggest import did_you_mean
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..options import GenerateConfig, LoadConfig

MAX_FILE_BYTES = 1 << 20
_UNREADABLE = "\ufffd"
"""The character with which Python replaces a byte that is not valid UTF-8."""

T = TypeVar("T")

_PROGRAMS = ("llama_server", "rocm_llama_server")
_OF_COMMANDS = ("keep_alive", "prefix_cache_size")
"""Load options that the file sets for all models that `llm` commands load."""
_PATH_FIELDS = ("adapters", "mmproj", "ca_bundle")
_SOURCE_FIELDS = ("source", "draft_model")
_OWN_KEYS = ("source", "backend", "options", "api_key_env", "embeddings")


class ConfiguredModel(NamedTuple):
    """A model that has a name in the configuration file.

    `load` does not contain a server's API key, which is read from the environment: `load_config()` adds it.
    `embeddings` says whether a model on a server is an embedding model; for a file, its header says that.
    """

    name: str
    source: str
    backend: str | None
    load: LoadConfig
    options: GenerateConfig
    api_key_env: str | None = None
    embeddings: bool | None = None

    def load_config(self, api_key: str | None = None) -> LoadConfig:
        """Return the load options, with the API key of the model's server.

        Args:
            api_key: The key; None: read it from the environment variable `api_key_env`, if that is configured.

        Raises:
            ConfigError: `api_key` is None, and the configured environment variable is not set.
        """
        if self.api_key_env is None or api_key is not None:
            return self.load.with_options({"api_key": api_key})
        key = os.environ.get(self.api_key_env)
        if not key:
            raise ConfigError(
                f"model {self.name!r} needs its API key in the environment variable {self.api_key_env}, "
                "which is not set: set it, or change api_key_env in the configuration file"
            )
        return self.load.with_options({"api_key": key})


class Problem(NamedTuple):
    """A mistake in the configuration file. The entry with the mistake is ignored.

    path          the file
    key           the entry, such as "models.coder"; "" if it concerns the whole file
    message       what is wrong
    line, column  the place in the file, counted from 1; 0 if it is not known
    model         the name of the model whose entry has the mistake; "" if it is in no entry of a model
    """

    path: str
    key: str
    message: str
    line: int = 0
    column: int = 0
    model: str = ""

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}:{self.column}" if self.line else self.path
        return ": ".join(filter(None, (place, self.key, self.message)))


class Config(NamedTuple):
    """The settings of the configuration file and the environment.

    path         the path of the file, which may not exist; "" if there is no home directory for it
    directories  the directories to search for models, as absolute paths
    models       the configured models by name
    programs     the server programs by key: "llama_server", "rocm_llama_server"
    problems     the mistakes in the file; the entries with mistakes are not in the other fields
    keep_alive   seconds for which models stay loaded after an `llm` command; None: they are unloaded
    prefix_cache_size  maximum bytes on disk of the prefix cache of `llm` commands; 0: no cache; None: the default
    """

    path: str
    directories: tuple[str, ...] = ()
    models: Mapping[str, ConfiguredModel] = {}
    programs: Mapping[str, str] = {}
    problems: tuple[Problem, ...] = ()
    keep_alive: float | None = None
    prefix_cache_size: int | None = None

    def model(self, name: str) -> ConfiguredModel | None:
        """Return the model with this name. None: there is none. Raises ConfigError if its entry has a mistake."""
        if name not in self.models:
            self.check(f"models.{name}")
        return self.models.get(name)

    def program(self, key: str) -> str | None:
        """Return the server program at `key`. None: it is not set. Raises ConfigError if the entry has a mistake."""
        self.check(key)
        return self.programs.get(key)

    def check(self, key: str) -> None:
        """Raise ConfigError if the entry `key` has a mistake."""
        for problem in self.problems:
            if problem.key == key or problem.key.startswith(f"{key}."):
                raise ConfigError(str(problem))


def config_path() -> str:
    """Return the absolute path of the configuration file, which may not exist."""
    if given := os.environ.get("INFERENCE_BRIDGE_CONFIG"):
        return os.path.abspath(os.path.expanduser(given))
    return os.path.join(user_directory("config"), "config.toml")


def load() -> Config:
    """Read the configuration file and the environment. A file that does not exist counts as empty.

    A mistake in the file raises no error: the entry is ignored, the mistake is added to the result's `problems`, and
    a warning is logged.

    Returns:
        The settings.
    """
    try:
        path = config_path()
    except ConfigError:  # there is no home directory, so there is no file
        return Config("", _from_environment())
    try:
        data = _read(path)
    except ConfigError as error:
        found = Config(path, _from_environment(), problems=(Problem(path, "", str(error).removeprefix(f"{path} ")),))
    else:
        found = _decoded(data, path)
    for problem in found.problems:
        _warn(problem)
    return found


def position(path: str, key: Sequence[str]) -> tuple[int, int]:
    """Return the line and column at which the file sets the entry `key`, counted from 1; (0, 0) if it is not known."""
    from . import toml_parts

    try:
        return toml_parts.position(_read(path).decode("utf-8-sig", "replace"), key)
    except ConfigError:
        return 0, 0


def interpret(table: Mapping[str, Any], path: str) -> Config:
    """Return the settings of a parsed configuration file."""
    return _interpret(table, path, "")


def _decoded(data: bytes, path: str) -> Config:
    """Return the settings of the file's content. A model whose entry has bytes that are not UTF-8 is left out."""
    try:
        return _parse(data.decode("utf-8-sig"), path)
    except UnicodeDecodeError as error:
        start = error.start
    message = "is not UTF-8 text: save the file in UTF-8"
    before = data[:start].decode("utf-8", "replace").split("\n")
    text = data.decode("utf-8-sig", "replace")
    found = _parse(text, path)
    damaged = [name for name, entry in found.models.items() if _UNREADABLE in repr(entry)]
    problems = [Problem(path, "", message, len(before), len(before[-1]) + 1)]
    if damaged:
        from . import toml_parts

        keys = [("models", name) for name in damaged]
        problems = [Problem(path, ".".join(key), message, *toml_parts.position(text, key), key[1]) for key in keys]
    models = {name: entry for name, entry in found.models.items() if name not in damaged}
    directories = tuple(place for place in found.directories if _UNREADABLE not in place)
    places = {problem.line for problem in problems}
    others = [problem for problem in found.problems if problem.line not in places]  # of the same bytes
    return found._replace(models=models, directories=directories, problems=(*problems, *others))


def _parse(text: str, path: str) -> Config:
    if not text:
        return _interpret({}, path, "")
    import tomllib

    try:
        return _interpret(tomllib.loads(text), path, text)
    except (tomllib.TOMLDecodeError, RecursionError):
        from . import toml_parts

    table, mistakes = toml_parts.read(text)
    found = _interpret(table, path, text)
    unreadable = [
        Problem(path, ".".join(one.key), one.message, one.line, one.column, "".join(one.key[1:])) for one in mistakes
    ]
    return found._replace(problems=(*unreadable, *found.problems))


def _interpret(table: Mapping[str, Any], path: str, text: str) -> Config:
    """What the `table` says, but for the entries that have a mistake; `text` is the file's, to tell where they are."""
    problem = _Problem(path, text)
    base = os.path.dirname(path)
    problem.collect(lambda: problem.check_keys(table, ("directories", *_OF_COMMANDS, "models", *_PROGRAMS), ()))

    directories = table.get("directories", [])
    found = []
    if isinstance(directories, list):
        for item in directories:
            if isinstance(item, str) and item:
                found.append(_resolve(item, base))
            else:
                problem.add(("directories",), f"must be a list of paths, and {item!r} is not one")
    else:
        problem.add(("directories",), "must be a list of paths")

    models = table.get("models", {})
    if not isinstance(models, dict):
        problem.add(("models",), "must be tables: [models.NAME]")
        models = {}
    named: dict[str, ConfiguredModel] = {}
    for name, entry in models.items():
        model = problem.collect(lambda name=name, entry=entry: _model(name, entry, base, problem))  # type: ignore[misc]
        if model is not None:
            named[name] = model
    programs = {}
    for key in _PROGRAMS:
        if key in table:
            if not isinstance(table[key], str) or not table[key]:
                problem.add((key,), f"must be the path of a program, not {table[key]!r}")
            else:
                programs[key] = _resolve(table[key], base)
    read = {
        key: problem.collect(partial(_load_option, key, table[key], problem)) for key in _OF_COMMANDS if key in table
    }
    places = tuple(dict.fromkeys([*found, *_from_environment()]))
    kept, size = read.get("keep_alive") or None, read.get("prefix_cache_size")
    return Config(path, places, named, programs, tuple(problem.found), kept, size)


def _load_option(key: str, value: object, problem: _Problem) -> Any:
    from ..options import LoadConfig

    read: LoadConfig = problem.check((key,), LoadConfig().with_options, {key: value})
    return getattr(read, key)


def _from_environment() -> tuple[str, ...]:
    added = os.environ.get("INFERENCE_BRIDGE_MODELS", "").split(os.pathsep)
    return tuple(os.path.abspath(os.path.expanduser(item)) for item in added if item)


def _read(path: str) -> bytes:
    """The content of the file; nothing if there is none. Raises ConfigError if it can't be read."""
    try:
        if os.path.isdir(path):
            raise ConfigError(f"{path} is a directory, not a configuration file")
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB, which a configuration file can't be")
    return data


_warned: set[Problem] = set()


def _warn(problem: Problem) -> None:
    """Log a mistake, once in a process: the file is read for every look-up of a name."""
    if problem not in _warned:
        import logging

        _warned.add(problem)
        logging.getLogger(__name__).warning(
            "%s%s", problem, " (this entry of the configuration is ignored)" if problem.key else ""
        )


def _model(name: str, entry: object, base: str, problem: _Problem) -> ConfiguredModel:
    # Here, because most configuration files name no model, and every `llm` command reads one.
    from ..options import GENERATE_FIELDS, LOAD_FIELDS, GenerateConfig, LoadConfig

    key = ("models", name)
    if not name.strip():
        raise problem(key, "needs a name")
    if not isinstance(entry, dict):
        raise problem(key, f"must be a table: [models.{name}]")
    if "api_key" in entry:
        raise problem((*key, "api_key"), "keys don't belong in a file: set api_key_env to the name of a variable")
    own_keys = (*_OWN_KEYS, *(part for part in LOAD_FIELDS if part != "api_key"))
    others = {part: value for part, value in entry.items() if part not in own_keys}
    if dotted := list(_dotted_names((name,), others)):
        for names in dotted:
            whole = ".".join(names)
            problem.add(("models", *names), f'a name with a dot needs quotes: [models."{whole}"]', whole)
        entry = {part: value for part, value in entry.items() if part not in {names[1] for names in dotted}}
        if not entry:
            raise _MistakeError
    problem.check_keys(entry, own_keys, key, (GENERATE_FIELDS, f"[models.{name}.options]"))

    own: dict[str, Any] = {}
    for part in ("source", "backend", "api_key_env"):
        own[part] = entry.get(part)
        if own[part] is not None and not (isinstance(own[part], str) and own[part]):
            raise problem((*key, part), f"must be a non-empty string, not {own[part]!r}")
    if own["source"] is None:
        raise problem(key, 'needs a source, such as source = "~/models/model.gguf"')

    load = LoadConfig()
    for part, value in entry.items():
        if part not in _OWN_KEYS:
            load = problem.check((*key, part), load.with_options, {part: value})
    paths = {part: getattr(load, part) for part in _PATH_FIELDS if getattr(load, part)}
    load = load.with_options({part: _resolve_all(value, base) for part, value in paths.items()})
    if load.draft_model is not None:
        load = load.with_options({"draft_model": _resolve_source(load.draft_model, base)})

    embeddings = entry.get("embeddings")
    if embeddings is not None and not isinstance(embeddings, bool):
        raise problem((*key, "embeddings"), f"must be true or false, not {embeddings!r}")
    options = entry.get("options", {})
    if not isinstance(options, dict):
        raise problem((*key, "options"), f"must be a table: [models.{name}.options]")
    problem.check_keys(options, GENERATE_FIELDS, (*key, "options"), (LOAD_FIELDS, f"[models.{name}]"))
    config = GenerateConfig()
    for part, value in options.items():
        config = problem.check((*key, "options", part), config.with_options, {part: value})
    source = _resolve_source(own["source"], base)
    return ConfiguredModel(name, source, own["backend"], load, config, own["api_key_env"], embeddings)


def _dotted_names(names: _Key, entry: Mapping[str, Any]) -> Iterator[_Key]:
    """Yield the parts of each name with a dot that has no quotes: TOML takes qwen2.5 for a 5 in the table qwen2."""
    for part, value in entry.items():
        if isinstance(value, dict):
            if "source" in value:
                yield (*names, part)
            else:
                yield from _dotted_names((*names, part), value)


# ---------------------------------------------------------------- paths


def _resolve(path: str, base: str) -> str:
    return os.path.normpath(os.path.join(base, os.path.expanduser(path)))


def _resolve_all(value: str | tuple[str, ...], base: str) -> str | tuple[str, ...]:
    return _resolve(value, base) if isinstance(value, str) else tuple(_resolve(path, base) for path in value)


def _resolve_source(source: str, base: str) -> str:
    """Return a path as an absolute path, and any other source unchanged.

    A source is a path if it looks like one, or if a file of that name exists.
    """
    if re.match(r"\w+://", source):
        return source
    prefix, rest = "", source
    if found := re.match(r"[A-Za-z_]\w+:", source):  # backend:path; a single letter is a drive
        prefix, rest = found[0], source[found.end() :]
    path = _resolve(rest, base)
    if rest.startswith(("~", "./", "../", ".\\", "..\\")) or (rest and os.path.exists(path)):
        return prefix + path
    return source


# ---------------------------------------------------------------- problems


_Key = tuple[str, ...]


class _MistakeError(Exception):
    """Ends the reading of one entry."""


class _Problem:
    """Collects the mistakes in one file."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self.found: list[Problem] = []

    def add(self, key: _Key, message: str, model: str = "") -> None:
        line = column = 0
        if key[0] == "models":
            model = model or "".join(key[1:2])
        if self.text:
            from . import toml_parts

            line, column = toml_parts.position(self.text, key)
        self.found.append(Problem(self.path, ".".join(key), message, line, column, model))

    def __call__(self, key: _Key, message: str) -> _MistakeError:
        """Add a mistake. Return the exception that ends the reading of its entry."""
        self.add(key, message)
        return _MistakeError()

    def collect(self, read: Callable[[], T]) -> T | None:
        """Return the result of `read`. None: the entry has a mistake."""
        try:
            return read()
        except _MistakeError:
            return None

    def check(self, key: _Key, apply: Callable[[dict[str, Any]], Any], value: dict[str, Any]) -> Any:
        try:
            return apply(value)
        except (TypeError, ValueError) as error:
            raise self(key, str(error)) from None

    def check_keys(
        self,
        table: Iterable[str],
        known: Iterable[str],
        where: _Key,
        elsewhere: tuple[Iterable[str], str] = ((), ""),
    ) -> None:
        """Add a mistake for each unknown name. `elsewhere`: the known names of another table, and its header."""
        unknown = [name for name in table if name not in known]
        others, place = elsewhere
        for name in unknown:
            hint = did_you_mean(name, known)
            if name in others:
                hint = f" here: it belongs in {place}"
            elif not hint and (other := did_you_mean(name, others)):
                hint = f" here{other.rstrip('?')} in {place}?"
            hint = hint or f": there are {', '.join(known)}"
            self.add((*where, name), f"is not known{hint}")
        if unknown and where:
            raise _MistakeError
