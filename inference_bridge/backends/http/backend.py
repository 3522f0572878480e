# SPDX-License-Identifier: Apache-2.0
"""Models that run on a server: a llama-server, or any server with the OpenAI-compatible API."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ...availability import Availability, install_command
from ...backend import Backend

if TYPE_CHECKING:
    from ...model import TextModel
    from ...options import LoadConfig


class HttpBackend(Backend):
    name = "http"
    capabilities = frozenset(
        {
            "chat",
            "tools",
            "json_schema",
            "reasoning",
            "logprobs",
            "token_ids",
            "embeddings",
            "infill",
            "images",
            "audios",
        }
    )
    formats = frozenset[str]()
    load_options = frozenset(
        {
            "model",
            "api_key",
            "headers",
            "connect_timeout",
            "first_token_timeout",
            "ca_bundle",
            "parallel_slots",
            "defaults",
            "extra",
        }
    )

    def availability(self) -> Availability:
        for package, module in (("httpx2", "httpx2"), ("jsonschema-rs", "jsonschema_rs")):
            if find_spec(module) is None:
                why = f"the package {package} is not installed"
                return Availability(False, why, f"Run: {install_command('http')}")
        return Availability(True)

    def can_load(self, source: str) -> bool:
        return re.match(r"https?://[^/]", source, re.IGNORECASE) is not None

    def load_model(self, source: str, config: LoadConfig) -> TextModel:
        from .load import load

        return load(source, config)
