# SPDX-License-Identifier: Apache-2.0
"""The examples with LangChain run unchanged and print their results."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from ...parts.models.tiny_gguf import write_embedding
from ...parts.servers.processes import llama_server

EXAMPLES = Path(__file__).parents[3] / "examples"

SHOWN = {
    "langchain_chain.py": r"The capital of France is Paris\.\n.*Rome\.\n.*Tokyo\.\n.*Cairo\.\n",
    "langchain_tools.py": r"get_weather {'city': 'Paris'}\n.*21 degrees.*\n",
    "langchain_extract.py": r"Person\(name='Maria', city='Rome', profession='doctor'\)\n"
    r"Person\(name='Kenji', city='Tokyo', profession='baker'\)\n"
    r"Person\(name='Anna', city='Berlin', profession='teacher'\)\n",
    "langchain_rag.py": r"The library opens at nine\.\nThe pool is closed on Mondays\.\n",
    "langchain_agent.py": r"human: .*\nai: \[{'city': 'Paris'}\]\ntool: 21 degrees, sunny\nai: .*21 degrees.*\n",
    "across.py": r"The capital of France is Paris\.\nThe capital of Japan is Tokyo\.\n",
}


@pytest.fixture
def embedding_model_path(tmp_path: Path) -> Path:
    """A random model whose vocabulary has the words of the example's texts."""
    strings = re.findall(r'"([^"]+)"', (EXAMPLES / "langchain_rag.py").read_text(encoding="utf-8"))
    words = {word for text in strings for word in re.findall("[a-z]+", text.lower())}
    return write_embedding(tmp_path / "words.gguf", words=sorted(words))


def test_every_example_is_here() -> None:
    assert {path.name for path in EXAMPLES.glob("langchain_*.py")} | {"across.py"} == set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_example(name: str, demo_model_path: Path, embedding_model_path: Path) -> None:
    with ExitStack() as stack:
        arguments = []
        if name == "langchain_rag.py":
            arguments = [f"llama_cpp:{embedding_model_path}"]
        elif name == "across.py":
            arguments = [stack.enter_context(llama_server(demo_model_path)) + "/v1"]
        command = [sys.executable, str(EXAMPLES / name), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(SHOWN[name], done.stdout), done.stdout


def test_an_example_that_needs_a_model_says_so_in_one_line() -> None:
    command = [sys.executable, str(EXAMPLES / "langchain_rag.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "llm bridge pull embeddings" in done.stderr


@pytest.mark.parametrize("name", SHOWN)
def test_example_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 32
