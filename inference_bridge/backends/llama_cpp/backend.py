# SPDX-License-Identifier: Apache-2.0
"""GGUF models in this process, through llama-cpp-python: on the CPU, CUDA, HIP or Metal, as it was built."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ...availability import Availability, install_command
from ...backend import Backend

if TYPE_CHECKING:
    from ...model import TextModel
    from ...options import LoadConfig


class LlamaCppBackend(Backend):
    name = "llama_cpp"
    capabilities = frozenset(
        {"chat", "tools", "json_schema", "reasoning", "logits", "logprobs", "token_ids", "images", "audios", "stats"}
    )
    load_options = frozenset(
        {
            "context_length",
            "gpu_layers",
            "parallel_slots",
            "threads",
            "batch_size",
            "chat_template",
            "adapters",
            "mmproj",
            "device",
            "split_mode",
            "tensor_split",
            "kv_cache_type",
            "memory_limit",
            "deterministic",
            "vet",
            "keep_alive",
            "extra",
            *(["prefix_cache_size"] if os.name == "posix" else []),  # elsewhere other users could read its files
        }
    )
    formats = frozenset({"gguf"})

    def availability(self) -> Availability:
        missing = [name for name in ("llama_cpp", "llguidance", "numpy", "jinja2", "psutil") if find_spec(name) is None]
        if not missing:
            return Availability(True)
        hint = f"Run: {install_command('llama-cpp')}"
        return Availability(False, f"the package {missing[0]} is not installed", hint)

    def can_load(self, source: str) -> bool:
        from ...catalog.headers.gguf import is_gguf

        return is_gguf(source)

    def load_model(self, source: str, config: LoadConfig) -> TextModel:
        if config.keep_alive:
            from .. import warm

            return warm.load(self.name, source, config)
        from .load import load

        return load(source, config)
