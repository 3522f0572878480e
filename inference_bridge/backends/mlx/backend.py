# SPDX-License-Identifier: Apache-2.0
"""MLX models in this process, through mlx-lm: `metal` on an Apple GPU, `mlx` on any device that MLX supports."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from ...availability import Availability, install_command
from ...backend import Backend
from ...errors import ModelLoadError

if TYPE_CHECKING:
    from ...model import TextModel
    from ...options import LoadConfig

_PACKAGES = ("mlx", "mlx_lm", "llguidance", "numpy", "jinja2", "psutil")


class Platform(NamedTuple):
    """The facts that decide whether MLX runs here.

    Attributes:
        system: As in sys.platform, such as "darwin".
        machine: As in os.uname(), such as "arm64" on a Mac with Apple silicon.
        missing: The import names of required packages that are not installed.
        library: Whether MLX's own library is installed. On Linux it is in a separate package for each type of device.
    """

    system: str
    machine: str
    missing: tuple[str, ...] = ()
    library: bool = True


def this_platform() -> Platform:
    """Return the facts about this machine and this Python, without importing an engine."""
    missing = tuple(name for name in _PACKAGES if find_spec(name) is None)
    machine = os.uname().machine if hasattr(os, "uname") else os.environ.get("PROCESSOR_ARCHITECTURE", "").lower()
    return Platform(sys.platform, machine, missing, "mlx" in missing or _has_library())


def _has_library() -> bool:
    if sys.platform != "linux":  # pragma: no cover - on macOS the package `mlx` contains it
        return True
    spec = find_spec("mlx")
    places = spec.submodule_search_locations if spec else None
    return any(os.path.exists(os.path.join(place, "lib", "libmlx.so")) for place in places or ())


def metal_is_usable() -> bool:
    """Return whether MLX finds a GPU that Metal can use. Imports mlx."""
    import mlx.core as mx

    return bool(mx.metal.is_available())


class _MlxEngine(Backend):
    """The base class of both backends.

    Args:
        platform: Returns the facts to use instead of those of this machine.
    """

    capabilities = frozenset(
        {"chat", "tools", "json_schema", "reasoning", "logits", "logprobs", "token_ids", "embeddings", "stats"}
    )
    formats = frozenset({"mlx"})
    load_options = frozenset(
        {
            "context_length",
            "parallel_slots",
            "batch_size",
            "chat_template",
            "adapters",
            "draft_model",
            "device",
            "prefix_cache_size",
            "keep_alive",
            "extra",
        }
    )

    def __init__(self, platform: Callable[[], Platform] | None = None) -> None:
        self._platform = platform

    def _here(self) -> Platform:
        return (self._platform or this_platform)()

    def can_load(self, source: str) -> bool:
        from ...catalog.headers.checkpoint import is_checkpoint

        try:
            names = dict.fromkeys(os.listdir(source))
        except OSError:
            return False
        return is_checkpoint(names)

    def load_model(self, source: str, config: LoadConfig) -> TextModel:
        if config.keep_alive:
            from .. import warm

            return warm.load(self.name, source, config)
        from .load import load

        return load(source, config, backend=self.name)


class MetalBackend(_MlxEngine):
    name = "metal"

    def availability(self) -> Availability:
        here = self._here()
        if here.system != "darwin":
            return Availability(
                False,
                f"Metal requires macOS on Apple silicon; this system is {here.system}",
                "mlx:model runs the same models on a CPU or an NVIDIA GPU",
            )
        if here.machine != "arm64":
            return Availability(
                False,
                f"it needs Apple silicon, and this Python runs on {here.machine}",
                "On a Mac with Apple silicon install Python for arm64; on one with an Intel processor use llama_cpp",
            )
        return _installed(here, "metal")

    def load_model(self, source: str, config: LoadConfig) -> TextModel:
        if not config.keep_alive and config.device in (None, "gpu") and not metal_is_usable():
            raise ModelLoadError(
                f"metal can't load {source}: MLX finds no GPU that Metal drives (a virtual machine has none). "
                'mlx:model, or device="cpu", runs on the CPU'
            )
        return super().load_model(source, config)


class MlxBackend(_MlxEngine):
    name = "mlx"

    def availability(self) -> Availability:
        here = self._here()
        if here.system not in ("darwin", "linux"):
            return Availability(False, f"MLX has no build for {here.system}", "llama_cpp runs GGUF models here")
        if here.system == "darwin" and here.machine != "arm64":
            return Availability(
                False,
                f"MLX on macOS needs Apple silicon, and this Python runs on {here.machine}",
                "On a Mac with Apple silicon install Python for arm64; on one with an Intel processor use llama_cpp",
            )
        installed = _installed(here, "mlx")
        if installed and not here.library:
            return Availability(
                False,
                "mlx is installed without the library for a device",
                "Run: pip install 'mlx[cpu]', or for an NVIDIA GPU: pip install 'mlx[cuda13]'",
            )
        return installed


def _installed(here: Platform, extra: str) -> Availability:
    if not here.missing:
        return Availability(True)
    return Availability(
        False,
        f"the package {here.missing[0]} is not installed",
        f"Run: {install_command(extra)}",
    )
