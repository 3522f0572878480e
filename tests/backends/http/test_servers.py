# SPDX-License-Identifier: Apache-2.0
"""The table of server kinds, and the page that is made from it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from inference_bridge import GenerateConfig
from inference_bridge.backends.http.backend import HttpBackend
from inference_bridge.backends.http.servers import BY_OWNER, SERVERS

ROOT = Path(__file__).parents[3]


def test_the_page_has_the_table_of_the_code() -> None:
    made: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "servers.py"))
    page = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    assert made["written"](page) == page, "Run: python docs/servers.py --write docs/http.md"


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    made: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "servers.py"))
    with pytest.raises(ValueError, match="<!-- servers -->"):
        made["written"]("a page")


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_has_options_and_capabilities_that_exist(name: str) -> None:
    server = SERVERS[name]
    fields = set(GenerateConfig.__dataclass_fields__)
    assert server.options | server.names.keys() <= fields
    assert server.capabilities | server.known | server.reported <= HttpBackend.capabilities
    assert server.known <= server.capabilities
    assert not server.known & server.reported
    assert server.named_choice in ("object", "required", "")
    assert server.forces == bool(server.named_choice) or "tools" not in server.capabilities


def test_an_owner_is_of_one_server() -> None:
    assert len(BY_OWNER) == sum(len(server.owners) for server in SERVERS.values())
