# SPDX-License-Identifier: Apache-2.0
"""Each example runs unchanged and prints its result."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..parts.servers.fault_server import delta, finish, serving, stream

EXAMPLES = Path(__file__).parents[2] / "examples"

SHOWN = {
    "stream_chat.py": r"The capital of France is Paris\.\n\(\d+ tokens, ended by 'stop'\)\n",
    "chat.py": r"\n> The capital of France is Paris\.\n> [\s\S]+\n> ",
    "batch.py": r"France: Paris\nItaly: \w.*\nJapan: \w.*\nEgypt: \w.*\nPeru: \w.*\n",
    "llm_python.py": r"> What is the capital .*\nThe capital of France is Paris\.\n\(\d+ input, \d+ output\)\n"
    r"> What is it .*\n[\s\S]+\n\(\d+ input, \d+ output.*\)\n",
}

TYPED = {"chat.py": "What is the capital of France? Answer in one sentence.\nAnd of Italy?\n"}


def test_every_example_is_here() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    langchain = {name for name in names if name.startswith("langchain_")} | {"across.py"}  # have separate tests
    assert names - langchain == set(SHOWN)


def test_the_list_of_examples_has_every_one() -> None:
    listed = set(re.findall(r"^\| \[([\w.]+)\]", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py" or path.is_dir()}


@pytest.mark.usefixtures("demo_model_path")
@pytest.mark.parametrize("name", SHOWN)
def test_example(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        env=os.environ | {"LLM_LOAD_PLUGINS": "inference-bridge"},
        input=TYPED.get(name, ""),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(SHOWN[name], done.stdout), done.stdout


def test_the_chat_does_not_repeat_reasoning_as_text() -> None:
    answer = stream(delta(reasoning_content="Hm. "), delta(content="Yes."), finish())
    with serving({"/v1/chat/completions": [answer]}, native=False) as server:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "chat.py"), server.address],
            input="Is it?\nReally?\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        second = [asked.json for asked in server.asked if asked.path == "/v1/chat/completions"][-1]
    assert (done.returncode, done.stderr) == (0, "")
    assert [message["content"] for message in second["messages"]] == ["Is it?", "Yes.", "Really?"]
    assert second["messages"][1]["reasoning_content"] == "Hm. "


@pytest.mark.parametrize("name", SHOWN)
def test_example_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 25
