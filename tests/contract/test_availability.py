# SPDX-License-Identifier: Apache-2.0
"""The command in an availability hint: it installs an extra from where the package came from."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference_bridge.availability import bridge_command, install_command


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], str]]:
    """What the command is where the package was installed from `origin`, as an installer notes that (PEP 610)."""
    information = tmp_path / "site" / "inference_bridge-9.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: inference-bridge\nVersion: 9\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(sys, "argv", ["program"])

    def command(origin: Any) -> str:
        if origin is not None:
            (information / "direct_url.json").write_text(json.dumps(origin))
        install_command.cache_clear()
        return install_command("mlx")

    yield command
    install_command.cache_clear()


def test_install_from_a_clone_names_the_clone(installed: Callable[[Any], str], tmp_path: Path) -> None:
    clone = tmp_path / "my clone"
    clone.mkdir()
    url = clone.as_uri()
    assert shlex.split(installed({"url": url, "dir_info": {}})) == ["pip", "install", f"{clone}[mlx]"]
    editable = installed({"url": url, "dir_info": {"editable": True}})
    assert shlex.split(editable) == ["pip", "install", "-e", f"{clone}[mlx]"]
    clone.rmdir()
    assert installed({"url": url, "dir_info": {}}) == "pip install 'inference-bridge[mlx]'"


def test_install_from_a_repository_names_its_url_and_revision(installed: Callable[[Any], str]) -> None:
    source = {"vcs": "git", "commit_id": "abc", "requested_revision": "main"}
    wanted = "pip install 'inference-bridge[mlx] @ git+https://host.example/x.git@main'"
    assert installed({"url": "https://host.example/x.git", "vcs_info": source}) == wanted


def test_install_from_an_archive_names_it(installed: Callable[[Any], str]) -> None:
    url = "https://host.example/inference_bridge-9-py3-none-any.whl"
    wanted = f"pip install 'inference-bridge[mlx] @ {url}'"
    assert installed({"url": url, "archive_info": {}}) == wanted


def test_install_from_an_index_is_by_name(installed: Callable[[Any], str]) -> None:
    assert installed(None) == "pip install 'inference-bridge[mlx]'"


def test_install_within_llm_goes_into_its_environment(
    installed: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/llm", "bridge", "doctor"])
    assert installed(None) == "llm install 'inference-bridge[mlx]'"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("/usr/local/bin/llm", "llm bridge pull chat"),
        ("/site-packages/llm/__main__.py", "llm bridge pull chat"),
        ("/usr/local/bin/inference-bridge", "inference-bridge pull chat"),
        ("/site-packages/other/__main__.py", "inference-bridge pull chat"),
        ("", "inference-bridge pull chat"),
    ],
)
def test_a_command_begins_as_the_running_program(program: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "x"])
    assert bridge_command("pull chat") == expected
    monkeypatch.setattr(sys, "argv", [])  # as in a program that embeds Python
    assert bridge_command("models") == "inference-bridge models"


def test_install_without_a_distribution_names_the_directory_of_the_package() -> None:
    code = "from inference_bridge.availability import install_command as c; print(c('mlx'))"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=root, capture_output=True, text=True, check=True, env={}
    )
    assert shlex.split(done.stdout) == ["pip", "install", f"{root}[mlx]"]
