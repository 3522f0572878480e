# SPDX-License-Identifier: Apache-2.0
"""The documentation is correct: its code runs, and its links have targets."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from inference_bridge.grammar import json_formats, json_keywords

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/*.md")]
)

FENCE = re.compile(r"^```(\w*)(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = r"llm|pip|python3?|uvx?|pipx|inference-bridge|make|git|curl|vllm|ray|llama-server|rpc-server|sudo|brew"
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)[^)]*\)")

page = pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])


def blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks in a language: the line each one's text begins on, and the text."""
    text = path.read_text(encoding="utf-8")
    found = [match for match in FENCE.finditer(text) if match[1] == language]
    return [(text.count("\n", 0, match.start(3)) + 1, match[3]) for match in found]


@page
def test_python_runs(path: Path, tmp_path: Path, demo_model_path: Path) -> None:
    """A page's blocks are one program: each may use what those above it made."""
    program = ""
    for line, code in blocks(path, "python"):
        program += "\n" * (line - 1 - program.count("\n")) + code  # an error names the page's own line
    if not program:
        return
    script = tmp_path / f"page_{path.stem}.py"  # not the name of a module that it imports
    script.write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=240, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


@page
def test_toml_parses(path: Path) -> None:
    for _, code in blocks(path, "toml"):
        tomllib.loads(code)


@page
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= targets


@page
def test_links_lead_to_files(path: Path) -> None:
    links = [link for link in LINK.findall(path.read_text(encoding="utf-8")) if not link.startswith("http")]
    assert not [link for link in links if not (path.parent / link).exists()]


@page
@pytest.mark.usefixtures("demo_model_path")
def test_shell_runs(path: Path, tmp_path: Path) -> None:
    """Every `sh` block can be pasted into a shell, and runs, unless the line above it says why it is not run."""
    text = path.read_text(encoding="utf-8")
    for line, code in blocks(path, "sh"):
        above = text.splitlines()[line - 3] if line > 2 else ""
        arguments = ["-n"] if above.startswith("<!-- not run: ") else ["-euo", "pipefail"]
        done = subprocess.run(
            ["bash", *arguments, "-c", code],
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"line {line}: {done.stderr}"


@page
def test_a_block_that_is_not_run_has_a_reason(path: Path) -> None:
    """`py` blocks are parts of a program, or need what is not here; `sh` and `python` blocks run unless marked."""
    text = path.read_text(encoding="utf-8")
    for reason in re.findall(r"<!-- not run(.*?)-->", text):
        assert re.fullmatch(r": \S.{10,}", reason.rstrip() + " "), reason


@page
def test_files_that_a_page_names_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:\w+/)+\w+\.py)`", text))
    places = [ROOT, ROOT / "inference_bridge"]
    assert {name for name in named if not any((place / name).exists() for place in places)} == set()


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@page
def test_commands_stand_in_shell_blocks(path: Path) -> None:
    """A command in a block of no language has text beside it that a shell would take as arguments."""
    commands = [
        code for _, code in blocks(path, "") if re.search(rf"^(\$ )?(\w+=\S+ )*({PROGRAMS}) ", code, re.MULTILINE)
    ]
    assert commands == []


def test_the_chart_shows_the_ratios_of_the_page() -> None:
    chart = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "chart.py")], capture_output=True, text=True, check=True
    ).stdout
    assert chart == (ROOT / "docs" / "benchmarks.svg").read_text(encoding="utf-8")


def test_the_commands_of_the_page_are_those_of_the_code() -> None:
    page = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "commands.py")], capture_output=True, text=True, check=True
    ).stdout
    assert page == (ROOT / "docs" / "commands.md").read_text(encoding="utf-8"), (
        "python docs/commands.py > docs/commands.md"
    )


@pytest.mark.parametrize(
    "package",
    [
        "inference_bridge",
        "inference_bridge.authoring",
        "inference_bridge.testing",
        "inference_bridge.serve",
        "llm_inference_bridge",
        "langchain_inference_bridge",
    ],
)
def test_the_reference_has_every_exported_name(package: str) -> None:
    """By itself, or with all of its module."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("reference*.md"))
    listed = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    module = importlib.import_module(package)
    missing = []
    for name in module.__all__:
        value = getattr(module, name)
        home = getattr(value, "__module__", None) or package
        own = getattr(value, "__name__", name)
        if not {f"{home}.{own}", home} & listed and not any(one.endswith(f".{name}") for one in listed):
            missing.append(name)
    assert [name for name in missing if name not in UNLISTED] == []


UNLISTED = {
    *("__version__", "hookimpl", "prometheus", "load_configuration", "store_directories", "parse_source"),
    *("FinishReason", "TokenKind"),
}
"""Types of a module that is listed whole, constants, modules, and names that are listed under the names they have at
home."""


def test_the_keywords_and_formats_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "structured-output.md").read_text(encoding="utf-8")

    def row(name: str) -> set[str]:
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        return set(re.findall(r"`([^`]+)`", line))

    assert row("enforced") == json_keywords.ENFORCED
    assert row("accepted as annotations") == json_keywords.ANNOTATIONS
    assert row("refused") == json_keywords.KNOWN
    assert row("of strings") == set(json_formats.STRINGS)
    assert row("any string is valid") == set(json_formats.EVERY_STRING)
    assert row("of numbers") == set(json_formats.NUMBERS)
