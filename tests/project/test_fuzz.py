# SPDX-License-Identifier: Apache-2.0
"""Each parser of external bytes, on a few hundred malformed inputs, which are the same in every run."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, Target, shown

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_parsers_read_or_refuse_every_input(target: Target) -> None:
    for data in islice(target.inputs(), target.count):
        try:
            target.check(data)
        except Exception as error:
            error.add_note(f"the input is {shown(data)}")
            raise


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_inputs_are_the_same_for_the_same_seed(target: Target) -> None:
    corpus = target.corpus()
    first = list(islice(target.inputs(), len(corpus) + 20))
    assert first == list(islice(target.inputs(), len(first)))
    assert first[: len(corpus)] == corpus
    assert first != list(islice(target.inputs(seed=1), len(first)))
    assert len(set(first)) > len(corpus) + 10


def run(code: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


COMMAND = "import sys; from tests.fuzz.__main__ import main; sys.exit(main())"


def test_the_command_runs_what_it_lists(tmp_path: Path) -> None:
    listed = run(COMMAND, folder=tmp_path)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(TARGETS)
    done = run(COMMAND, "sse", "facts", "--seconds", "0.1", folder=tmp_path)
    assert (done.returncode, done.stdout.count("nothing found")) == (0, 2), done.stderr


BROKEN = """
from inference_bridge.backends.http.transport.sse import EventReader
EventReader._with_newlines = lambda self, chunk: chunk.replace(b"\\r\\n", b"\\n").replace(b"\\r", b"\\n")
"""
HANGS = """
import time
from tests.fuzz import servers
servers._pieces = lambda *_: time.sleep(60)
"""


def test_the_command_finds_a_defect_and_keeps_its_input(tmp_path: Path) -> None:
    done = run(BROKEN + COMMAND, "sse", "--seconds", "30", folder=tmp_path)
    assert (done.returncode, "AssertionError" in done.stderr) == (1, True), done.stderr
    (kept,) = (tmp_path / "build" / "fuzz").iterdir()
    assert str(kept.relative_to(tmp_path)) in done.stdout
    assert run(BROKEN + COMMAND, "sse", "--input", str(kept), folder=tmp_path).returncode == 1


def test_the_command_ends_an_input_that_hangs(tmp_path: Path) -> None:
    slow = run(HANGS + COMMAND, "sse", "--timeout", "0.1", folder=tmp_path)
    assert (slow.returncode, "the input takes too long" in slow.stderr) == (1, True), slow.stderr
