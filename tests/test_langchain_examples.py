# SPDX-License-Identifier: Apache-2.0
"""The examples with LangChain run as they are, and print what they are there to show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

SHOWN = {
    "langchain_chain.py": r"The capital of France is Paris\.\n.*Rome\.\n.*Tokyo\.\n.*Cairo\.\n",
    "langchain_tools.py": r"get_weather {'city': 'Paris'}\n.*21 degrees.*\n",
    "langchain_extract.py": r"Person\(name='Maria', city='Rome', profession='doctor'\)\n"
    r"Person\(name='Kenji', city='Tokyo', profession='baker'\)\n"
    r"Person\(name='Anna', city='Berlin', profession='teacher'\)\n",
}


def test_every_example_is_here() -> None:
    assert {path.name for path in EXAMPLES.glob("langchain_*.py")} == set(SHOWN)


@pytest.mark.usefixtures("demo_model_path")
@pytest.mark.parametrize("name", SHOWN)
def test_example(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(SHOWN[name], done.stdout), done.stdout


@pytest.mark.parametrize("name", SHOWN)
def test_example_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 30
