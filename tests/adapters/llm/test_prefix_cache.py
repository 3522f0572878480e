# SPDX-License-Identifier: Apache-2.0
"""Commands of llm keep long prompts on disk for the next command, and nothing where llm's log gets nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from inference_bridge.engine.prefix_cache import files as prefix_files

from ...parts.models.tiny_gguf import write_llama

DOCUMENT = "".join(f"Line {number}: the fox jumps {number * 7 % 13} times. " for number in range(40))
"""More than 1,000 tokens of the tiny model, whose tokens are bytes."""


@pytest.fixture(autouse=True)
def tiny(models_directory: Path) -> None:
    models_directory.mkdir()
    write_llama(models_directory / "tiny.gguf", 4096)


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "llm", *arguments]
    environment = os.environ | {"LLM_LOAD_PLUGINS": "inference-bridge"}
    done = subprocess.run(command, input="", env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(*arguments: str, text: str = DOCUMENT) -> None:
    run("-m", "llama_cpp:tiny", "-o", "temperature", "0", "-o", "max_tokens", "8", *arguments, text)


def cached() -> int:
    """The tokens that the last command did not evaluate, as llm logs them."""
    (row,) = json.loads(run("logs", "--json", "-n", "1"))
    return int(row["response_json"]["metrics"]["cached_tokens"])


def kept() -> list[Path]:
    return list(Path(prefix_files.directory()).glob("*.prefix"))


def test_the_next_command_evaluates_only_the_rest() -> None:
    ask()
    assert cached() == 0
    ask(text=f"{DOCUMENT} Why?")
    assert cached() > 1000
    ask("-c", text="And then?")
    assert cached() > 1000
    shown = json.loads(run("bridge", "cache", "--json"))
    (model,) = shown["models"]
    assert (shown["prefixes"], Path(model["model"]).name) == (len(kept()), "tiny.gguf")
    assert "Removed" in run("bridge", "cache", "--clear")
    assert not kept()


def test_a_short_prompt_leaves_nothing() -> None:
    ask(text="Hello")
    assert not kept()


@pytest.mark.parametrize(
    ("settings", "arguments", "keeps"),
    [
        ("", ("-o", "prefix_cache_size", "0"), False),
        ("prefix_cache_size = 0", (), False),
        ("prefix_cache_size = 0", ("-o", "prefix_cache_size", "1GiB"), True),
        ("prefix_cache_size = '1GiB'", (), True),
        ("", ("--no-log",), False),
        ("", ("--no-log", "-o", "prefix_cache_size", "1GiB"), True),
    ],
)
def test_it_can_be_switched_off(
    settings: str, arguments: tuple[str, ...], keeps: bool, configure: Callable[[str], Path]
) -> None:
    configure(settings)
    ask(*arguments)
    assert bool(kept()) == keeps


def test_a_model_has_its_own_setting(configure: Callable[[str], Path], models_directory: Path) -> None:
    configure(f'[models.own]\nsource = "{models_directory}/tiny.gguf"\nprefix_cache_size = 0')
    run("-m", "llama_cpp:own", "-o", "temperature", "0", "-o", "max_tokens", "8", DOCUMENT)
    assert not kept()


def test_logs_that_are_off_keep_nothing() -> None:
    run("logs", "off")
    ask()
    assert not kept()
