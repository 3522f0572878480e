# SPDX-License-Identifier: Apache-2.0
"""`llm bridge decide` on the real small model."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from inference_bridge.cli.commands import bridge

TEXT = "Production is down!"


def run(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(bridge, ["decide", *arguments], input=given)


def test_answers_as_json_and_as_lines(demo_model_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.json"
    file.write_text(json.dumps({"late": {"type": "noul", "instructions": "Is it late?"}}), encoding="utf-8")
    asked = ["--noul", "urgent", "Is it urgent?", "--choice", "team", "Which team?", "billing | support"]
    asked += ["--score", "anger", "How angry?", "calm|furious", "--questions", str(file)]
    done = run(str(demo_model_path), TEXT, *asked, "--json")
    assert done.exit_code == 0, done.output
    told: dict[str, Any] = json.loads(done.stdout)
    assert list(told) == ["late", "urgent", "team", "anger"]
    assert [one["type"] for one in told.values()] == ["noul", "noul", "choice", "score"]
    assert set(told["team"]["probabilities"]) == {"billing", "support"}
    assert 0 <= told["urgent"]["mass"] <= 1
    lines = run(str(demo_model_path), *asked, given=TEXT)
    assert lines.exit_code == 0, lines.output
    head, *rows = [line.split("\t") for line in lines.stdout.splitlines()]
    assert head[:2] == ["QUESTION", "ANSWER"]
    assert [row[0] for row in rows] == list(told)
    assert rows[2][1] in ("billing", "support")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "at least one question"),
        (["--choice", "a", "x", "b|"], "blank"),
        (["--score", "a", "x", "only"], "two levels"),
        (["--noul", "a", "x", "--noul", "a", "y"], "'a'"),
        (["--noul", "a", " "], "empty"),
    ],
)
def test_wrong_questions_are_refused_before_a_model_is_loaded(asked: list[str], said: str) -> None:
    done = run("no such model", TEXT, *asked)
    assert done.exit_code == 2
    assert said in done.output


@pytest.mark.parametrize("content", ["[]", "{", "\xff", '{"a": {"type": "guess"}}'])
def test_a_file_without_questions_is_an_error(tmp_path: Path, demo_model_path: Path, content: str) -> None:
    file = tmp_path / "questions.json"
    file.write_bytes(content.encode("latin-1"))
    done = run(str(demo_model_path), TEXT, "--questions", str(file))
    assert done.exit_code == 2
    assert done.stderr


def test_a_model_that_is_not_there_is_an_error() -> None:
    done = run("no such model", TEXT, "--noul", "a", "Is it?")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")


@pytest.mark.parametrize(("given", "said"), [(b"", "the text is empty"), (b" \n", "empty"), (b"caf\xe9", "not UTF-8")])
def test_a_text_that_can_not_be_read_is_refused_before_the_model_is_loaded(given: bytes, said: str) -> None:
    command = [sys.executable, "-m", "inference_bridge.cli", "decide", "/nowhere.gguf", "--noul", "a", "Is it?"]
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, input=given, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in done.stderr.decode()


def test_a_terminal_that_waits_shows_for_what(demo_model_path: Path) -> None:
    """With the line at once, which otherwise comes after a second, and only on a terminal."""
    code = """
import sys
from inference_bridge.cli import commands, progress
progress.DELAY = progress._INTERVAL = 0.01
commands.bridge(["decide", *sys.argv[1:]])
"""
    command = [sys.executable, "-c", code, str(demo_model_path), TEXT, "--noul", "a", "Is it urgent?"]
    master, slave = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, env=os.environ | {"TERM": "xterm"}) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal has no writer any more
            while piece := os.read(master, 4096):
                shown += piece
        assert process.stdout is not None
        told = process.stdout.read()
    os.close(master)
    assert process.returncode == 0
    assert told.startswith(b"QUESTION\t")
    assert b"\r\x1b[KLoading " in shown
    assert b" answers 1 question: " in shown
    assert shown.endswith(b"\r\x1b[K")
    assert subprocess.run(command, capture_output=True, check=True).stderr == b""
