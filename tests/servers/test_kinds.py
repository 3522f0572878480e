# SPDX-License-Identifier: Apache-2.0
"""Starting and skipping other projects' servers. None of them runs in this test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from . import __main__ as program
from . import hf_model
from .kinds import KEY, KINDS, Kind


@pytest.mark.parametrize("name", KINDS)
def test_command_lines_do_not_contain_the_key(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHIND", "http://127.0.0.1:9")
    monkeypatch.setattr(hf_model, "write_hf", lambda directory: directory)
    assert not any(KEY in word for word in KINDS[name].command(tmp_path, tmp_path, 80))


def test_a_server_that_ends_at_once_is_skipped_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; sys.exit('no GPU here')"
    kind = Kind((), lambda *_: [sys.executable, "-c", code], {}, {})
    monkeypatch.setattr(program, "BUILD", tmp_path)
    monkeypatch.setitem(KINDS, "vllm", kind)
    assert program.main(["vllm", "--use", f"vllm={tmp_path}"]) == 0
    assert "vllm: skipped: it ends at once: no GPU here" in capsys.readouterr().out


def test_a_server_that_can_not_be_installed_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = Kind((f"{tmp_path}/gone",), lambda *_: [], {}, {})
    monkeypatch.setattr(program, "BUILD", tmp_path)
    monkeypatch.setitem(KINDS, "vllm", kind)
    assert program.main(["vllm"]) == 0
    assert "vllm: skipped: it can't be installed" in capsys.readouterr().out
