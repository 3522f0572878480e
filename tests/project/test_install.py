# SPDX-License-Identifier: Apache-2.0
"""README's first commands, as they stand there, in a fresh environment without a compiler."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inference_bridge.cli.models.recommended import RECOMMENDED

from ..parts.servers.hub_server import serving
from .test_docs import ROOT, blocks


def first_commands() -> str:
    """README's shell block that needs no compiler, from a new environment to an answer."""
    (block,) = [text for _, text in blocks(ROOT / "README.md", "sh") if "python3 -m venv" in text]
    return block


def test_the_first_commands_install_a_prebuilt_server_and_a_recommended_model() -> None:
    commands = first_commands()
    small = next(one for one in RECOMMENDED if one.name == "small")
    assert "pip install '.[llm,server]'" in commands
    assert "llm bridge pull small" in commands
    assert f"llm -m {small.file.removesuffix('.gguf')} " in commands
    assert "llama-cpp" not in commands


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_first_commands_end_with_an_answer(tmp_path: Path, demo_model_path: Path) -> None:
    """The hub is a stand-in on this machine, which has a smaller model under the recommended name."""
    index = subprocess.run(
        [sys.executable, "-m", "pip", "index", "versions", "pluggy"], capture_output=True, timeout=120, check=False
    )
    if index.returncode != 0:
        pytest.skip("no package index can be reached")
    clone = tmp_path / "clone"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for file in filter(None, files.split("\0")):
        if (ROOT / file).is_file():
            (clone / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, clone / file)
    home = tmp_path / "home"
    home.mkdir()
    small = next(one for one in RECOMMENDED if one.name == "small")
    name = f"llama_server:{small.file.removesuffix('.gguf')}"
    # Without a limit the smaller model repeats itself for thousands of tokens. What is sampled may have no three words.
    limits = {name: {"max_tokens": 40, "temperature": 0.0}}
    options = home / ".config" / "io.datasette.llm" / "model_options.json"  # as `llm models options set` writes it
    options.parent.mkdir(parents=True)
    options.write_text(json.dumps(limits))
    programs = tmp_path / "programs"  # all there is in PATH: no compiler among them
    programs.mkdir()
    for program in ("bash", "cat", "dirname", "env", "ls", "mkdir", "rm", "uname"):
        (programs / program).symlink_to(shutil.which(program) or program)
    (programs / "python3").symlink_to(os.path.realpath(sys.executable))
    with serving() as hub:
        hub.repos[small.repo] = {small.file: demo_model_path.read_bytes()}
        done = subprocess.run(
            [shutil.which("bash") or "bash", "-euo", "pipefail", "-c", first_commands()],
            cwd=clone,
            env={
                "PATH": str(programs),
                "HOME": str(home),
                "LANG": "C.UTF-8",
                "HF_ENDPOINT": hub.url,
                **{key: value for key, value in os.environ.items() if key.startswith(("PIP_", "SSL_"))},
            },
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    answer = done.stdout.rpartition(f"{name}\n")[2]  # which `pull` prints at its end
    assert re.search(r"\w+ \w+ \w+", answer), done.stdout
