# SPDX-License-Identifier: Apache-2.0
"""The configuration file: named models, and directories in which to look for more.

    directories = ["~/models"]
    llama_server = "~/llama.cpp/build/bin/llama-server"   # what the backend llama_server runs
    rocm_llama_server = "~/llama.cpp/hip/bin/llama-server"

    [models.coder]
    source = "~/models/Qwen3-Coder-30B-Q4_K_M.gguf"   # whatever load_model takes
    backend = "llama_cpp"                             # optional
    context_length = 32768                            # any field of LoadConfig

    [models.coder.options]                            # any field of GenerateConfig
    temperature = 0.7

    [models.gpu-box]
    source = "https://gpu.example:8443"
    api_key_env = "GPU_BOX_KEY"                       # the variable that holds the key
    embeddings = true                                 # optional: it makes embeddings, and generates nothing

It is `config.toml` in the platform's configuration directory for "inference-bridge"
(on Linux ~/.config/inference-bridge), or the file that INFERENCE_BRIDGE_CONFIG names. Paths in
it may begin with ~ and are otherwise relative to the file's directory.
INFERENCE_BRIDGE_MODELS adds directories, separated as in PATH.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .._directories import user_directory
from .._suggest import did_you_mean
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..options import GenerateConfig, LoadConfig

MAX_FILE_BYTES = 1 << 20

_PROGRAMS = ("llama_server", "rocm_llama_server")
_PATH_FIELDS = ("adapters", "mmproj", "ca_bundle")
_SOURCE_FIELDS = ("source", "draft_model")
_OWN_KEYS = ("source", "backend", "options", "api_key_env", "embeddings")


class ConfiguredModel(NamedTuple):
    """A model that has a name in the configuration file.

    `load` lacks the key of a server, which stays in the environment: `load_config()` has it.
    `embeddings` says whether it makes embeddings, for one of which that can't be seen: on a server.
    """

    name: str
    source: str
    backend: str | None
    load: LoadConfig
    options: GenerateConfig
    api_key_env: str | None = None
    embeddings: bool | None = None

    def load_config(self, api_key: str | None = None) -> LoadConfig:
        """How to load it, the key included: `api_key`, or that in the environment.

        Raises ConfigError if there is none and the variable of the key is not set.
        """
        if self.api_key_env is None or api_key is not None:
            return self.load.with_options({"api_key": api_key})
        key = os.environ.get(self.api_key_env)
        if not key:
            raise ConfigError(
                f"the key of model {self.name!r} is to be in the environment variable {self.api_key_env}, "
                "which is not set: set it, or change api_key_env in the configuration file"
            )
        return self.load.with_options({"api_key": key})


class Config(NamedTuple):
    """What the configuration file and the environment say. `path` is the file, there or not.

    `programs` are the servers that it names, by key: "llama_server", "rocm_llama_server".
    """

    path: str
    directories: tuple[str, ...] = ()
    models: Mapping[str, ConfiguredModel] = {}
    programs: Mapping[str, str] = {}


def config_path() -> str:
    """The configuration file's absolute path; no such file need exist."""
    if given := os.environ.get("INFERENCE_BRIDGE_CONFIG"):
        return os.path.abspath(os.path.expanduser(given))
    return os.path.join(user_directory("config"), "config.toml")


def load() -> Config:
    """Read the configuration. A file that does not exist is an empty one.

    Raises ConfigError, which names the file and the key, for anything in it that is not
    understood.
    """
    path = config_path()
    return interpret(_read(path), path)


def interpret(table: Mapping[str, Any], path: str) -> Config:
    """What the `table` in the file at `path` says. Raises ConfigError."""
    problem = _Problem(path)
    problem.check_keys(table, ("directories", "models", *_PROGRAMS), "")

    base = os.path.dirname(path)
    directories = table.get("directories", [])
    if not isinstance(directories, list) or not all(isinstance(item, str) and item for item in directories):
        raise problem("directories", "must be a list of paths")
    found = [_resolve(item, base) for item in directories]
    added = os.environ.get("INFERENCE_BRIDGE_MODELS", "").split(os.pathsep)
    found += [os.path.abspath(os.path.expanduser(item)) for item in added if item]

    models = table.get("models", {})
    if not isinstance(models, dict):
        raise problem("models", "must be tables: [models.NAME]")
    named = {name: _model(name, entry, base, problem) for name, entry in models.items()}
    programs = {}
    for key in _PROGRAMS:
        if key in table:
            if not isinstance(table[key], str) or not table[key]:
                raise problem(key, f"must be the path of a program, not {table[key]!r}")
            programs[key] = _resolve(table[key], base)
    return Config(path, tuple(dict.fromkeys(found)), named, programs)


def _read(path: str) -> dict[str, Any]:
    try:
        if os.path.isdir(path):
            raise ConfigError(f"{path} is a directory, not a configuration file")
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB: that is no configuration file")

    import tomllib

    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (at byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path} is not usable: it is nested too deep") from None


def _model(name: str, entry: object, base: str, problem: _Problem) -> ConfiguredModel:
    # Here, because most configuration files name no model, and every `llm` command reads one.
    from ..options import GENERATE_FIELDS, LOAD_FIELDS, GenerateConfig, LoadConfig

    key = f"models.{name}"
    if not name.strip():
        raise problem(key, "needs a name")
    if not isinstance(entry, dict):
        raise problem(key, f"must be a table: [{key}]")
    if "api_key" in entry:
        raise problem(f"{key}.api_key", "keys don't belong in a file: set api_key_env to the name of a variable")
    problem.check_keys(entry, (*_OWN_KEYS, *(name for name in LOAD_FIELDS if name != "api_key")), key)

    own: dict[str, Any] = {}
    for part in ("source", "backend", "api_key_env"):
        own[part] = entry.get(part)
        if own[part] is not None and not (isinstance(own[part], str) and own[part]):
            raise problem(f"{key}.{part}", f"must be a non-empty string, not {own[part]!r}")
    if own["source"] is None:
        raise problem(key, 'needs a source, such as source = "~/models/model.gguf"')

    load = LoadConfig()
    for part, value in entry.items():
        if part not in _OWN_KEYS:
            load = problem.check(f"{key}.{part}", load.with_options, {part: value})
    paths = {part: getattr(load, part) for part in _PATH_FIELDS if getattr(load, part)}
    load = load.with_options({part: _resolve_all(value, base) for part, value in paths.items()})
    if load.draft_model is not None:
        load = load.with_options({"draft_model": _resolve_source(load.draft_model, base)})

    embeddings = entry.get("embeddings")
    if embeddings is not None and not isinstance(embeddings, bool):
        raise problem(f"{key}.embeddings", f"must be true or false, not {embeddings!r}")
    options = entry.get("options", {})
    if not isinstance(options, dict):
        raise problem(f"{key}.options", f"must be a table: [{key}.options]")
    problem.check_keys(options, GENERATE_FIELDS, f"{key}.options")
    config = GenerateConfig()
    for part, value in options.items():
        config = problem.check(f"{key}.options.{part}", config.with_options, {part: value})
    source = _resolve_source(own["source"], base)
    return ConfiguredModel(name, source, own["backend"], load, config, own["api_key_env"], embeddings)


# ---------------------------------------------------------------- paths


def _resolve(path: str, base: str) -> str:
    return os.path.normpath(os.path.join(base, os.path.expanduser(path)))


def _resolve_all(value: str | tuple[str, ...], base: str) -> str | tuple[str, ...]:
    return _resolve(value, base) if isinstance(value, str) else tuple(_resolve(path, base) for path in value)


def _resolve_source(source: str, base: str) -> str:
    """A source is a path if it looks like one or there is such a file; else it is left as it is."""
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


class _Problem:
    """Makes the ConfigErrors of one file: each names it and the key."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, key: str, message: str) -> ConfigError:
        return ConfigError(f"{self.path}: {key}: {message}")

    def check(self, key: str, apply: Callable[[dict[str, Any]], Any], value: dict[str, Any]) -> Any:
        try:
            return apply(value)
        except (TypeError, ValueError) as error:
            raise self(key, str(error)) from None

    def check_keys(self, table: Iterable[str], known: Iterable[str], where: str) -> None:
        for name in table:
            if name not in known:
                hint = did_you_mean(name, known) or f": there are {', '.join(known)}"
                raise self(f"{where}.{name}" if where else name, f"is not known{hint}")
