# SPDX-License-Identifier: Apache-2.0
"""The http backend keeps the contract on the server at SUITE_URL, which `python -m tests.servers` starts."""

from __future__ import annotations

import os
from typing import ClassVar

from inference_bridge.testing import BackendSuite, ContractSuite

URL = os.environ.get("SUITE_URL", "")
HANG_TIMEOUT = float(os.environ.get("SUITE_HANG_TIMEOUT", "30"))
KEY = os.environ.get("SUITE_KEY") or None
OPTIONS = {"api_key": KEY} if KEY else {}


class TestServer(ContractSuite):
    __test__ = bool(URL)
    source = URL
    load_options: ClassVar = OPTIONS
    length = 8
    tolerance = 1.0
    hang_timeout = HANG_TIMEOUT
    lists_ids: ClassVar = False  # vLLM shows the alternatives' texts or their ids, never both
    reuses_prefixes: ClassVar = False  # vLLM keeps whole blocks of 16 to 128 tokens
    penalties: ClassVar = {"repeat_penalty": 5.0, "presence_penalty": 2.0, "frequency_penalty": 2.0}


class TestServerBackend(BackendSuite):
    __test__ = bool(URL)
    name = "http"
    missing = "http://127.0.0.1:9"  # the port of "discard", where nothing listens
    source = URL
    load_options: ClassVar = OPTIONS
    engine_modules = ("httpx2", "httpcore2", "anyio")
