# SPDX-License-Identifier: Apache-2.0
"""INFERENCE_BRIDGE_LOG writes log messages to stderr. It is read once, so each test starts a process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import logging
from inference_bridge import _log
_log.configure()
_log.configure()
for level in ("debug", "info", "warning"):
    getattr(logging.getLogger("inference_bridge.part"), level)("a message of level %s", level)
"""


def _stderr(level: str | None, program: str = PROGRAM) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "INFERENCE_BRIDGE_LOG"}
    if level is not None:
        environment["INFERENCE_BRIDGE_LOG"] = level
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert not done.stdout
    return done.stderr.splitlines()


@pytest.mark.parametrize("level", [None, ""])
def test_an_unset_level_shows_no_messages(level: str | None) -> None:
    assert _stderr(level) == []


@pytest.mark.parametrize(
    ("level", "shown"), [("debug", ["debug", "info", "warning"]), (" INFO ", ["info", "warning"]), ("error", [])]
)
def test_a_level_shows_messages_of_that_level_or_higher_once(level: str, shown: list[str]) -> None:
    lines = _stderr(level)
    assert [line.rsplit(" ", 1)[1] for line in lines] == shown
    assert all("inference_bridge.part: a message" in line for line in lines)


def test_an_unknown_level_is_reported() -> None:
    (message,) = [line for line in _stderr("verbose") if "INFERENCE_BRIDGE_LOG" in line]
    assert "'verbose' is not one of debug, info, warning, error, critical" in message


def test_an_application_that_configures_logging_sees_the_messages() -> None:
    program = "import logging; logging.basicConfig(level='INFO')\n" + PROGRAM
    assert [line.rsplit(" ", 1)[1] for line in _stderr(None, program)] == ["info", "warning"]


def test_the_first_use_of_the_registry_configures_it() -> None:
    program = """
import logging, inference_bridge
inference_bridge.names()
logging.getLogger("inference_bridge").info("after")
"""
    assert _stderr("info", program)[-1].endswith("INFO inference_bridge: after")
