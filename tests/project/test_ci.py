# SPDX-License-Identifier: Apache-2.0
"""What runs the checks elsewhere: .ci/run, the workflows, and a Makefile for the make and the shell that macOS has.

`make check` validates the workflows with GitHub's schema.
"""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
CI_RUN = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

TARGETS = re.findall(r"^([a-z]+):.*## ", MAKEFILE, re.MULTILINE)
ON = True
"""The value of the key `on` in YAML 1.1."""

every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)


def workflow(name: str) -> dict[Any, Any]:
    read = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))
    assert isinstance(read, dict)
    return read


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


# ---------------------------------------------------------------- make


def test_contributing_describes_every_target() -> None:
    """The Makefile and the README describe help, clean and demo."""
    told = re.findall(r"^make ([a-z]+) ", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(told) == set(TARGETS) - {"help", "clean", "demo"}


@pytest.mark.parametrize("target", TARGETS)
def test_make_has_a_rule_for_every_target(target: str) -> None:
    """No command runs. A rule that does not parse, or that needs a file without a rule, is an error."""
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    done = subprocess.run(
        ["make", "-n", target], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_makefile_is_for_make_3_81() -> None:
    """macOS has this version of 2006, which misreads later syntax."""
    newer = (
        r"""\.ONESHELL|\.SHELLFLAGS|\.RECIPEPREFIX|\.EXTRA_PREREQS|\.NOTINTERMEDIATE|\$\((?:file|guile|let|intcmp) |"""
    )
    newer += r"""^(?:undefine|load|private) |^[^\t#]*(?:::=|!=|&:)|^define .*="""
    assert re.findall(newer, MAKEFILE, re.MULTILINE) == []


# ---------------------------------------------------------------- .ci/run


def test_its_steps_are_targets() -> None:
    steps = re.findall(r"^step (\w+)", CI_RUN, re.MULTILINE)
    assert set(steps) <= set(TARGETS)
    assert steps[:3] == ["check", "demo", "test"]
    assert {"oldest", "dist"} < set(steps)


def test_the_script_runs_with_bash_3_2() -> None:
    """macOS has that one, of 2006 too."""
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT, check=True, timeout=60)
    newer = r"declare -[Agln]|local -n|mapfile|readarray|coproc|\|&|&>>|\$\{\w+(?:,|\^|@)|;;?&|\*\*/|wait -n|%\(.*\)T"
    assert re.findall(newer, CI_RUN) == []


def test_all_steps_run_after_a_failed_one(tmp_path: Path) -> None:
    """With a stand-in for make that prints its arguments and fails for chosen targets."""
    (tmp_path / "make").write_text(
        '#!/bin/sh\nprintf "asked:%s" "$1"; printf " (%s)" "$@"; echo\n[ "$1" != "$FAILS" ]\n'
    )
    (tmp_path / "make").chmod(0o755)

    def run(fails: str) -> tuple[list[str], str, int]:
        environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "FAILS": fails}
        done = subprocess.run(
            [ROOT / ".ci" / "run"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return re.findall(r"^asked:(.*)", done.stdout, re.MULTILINE), done.stdout.splitlines()[-1], done.returncode

    steps, last, code = run(fails="nothing")
    assert steps[:3] == ["check (check)", "demo (demo)", "test (test)"]
    assert 'oldest (oldest) (ARGS=-m "not slow")' in steps
    assert (last.startswith("==== make "), code) == (True, 0)
    assert run(fails="demo") == (steps, "failed: make demo", 1)


# ---------------------------------------------------------------- tested versions


@pytest.mark.parametrize(("extra", "name"), [("llm", "llm"), ("langchain", "langchain-core")])
def test_the_oldest_versions_are_those_of_the_range(extra: str, name: str) -> None:
    (oldest,) = re.findall(rf"^OLDEST_\w+ := {name}@(.*)$", MAKEFILE, re.MULTILINE)
    (needed,) = [need for need in PROJECT["project"]["optional-dependencies"][extra] if need.startswith(f"{name}>=")]
    lowest = re.split(">=|,", needed)[1]
    assert oldest in (lowest, f"{lowest}.0")


def test_the_workflow_runs_ci_on_supported_systems() -> None:
    (job,) = workflow("ci.yml")["jobs"].values()
    assert commands(job) == [".ci/run"]
    systems, pythons = job["strategy"]["matrix"]["os"], job["strategy"]["matrix"]["python"]
    assert {system.partition("-")[0] for system in systems} == {"ubuntu", "macos"}
    supported = [
        kind.rpartition(" ")[2]
        for kind in PROJECT["project"]["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", kind)
    ]
    assert pythons == [supported[0], supported[-1]]
    assert PROJECT["project"]["requires-python"] == f">={pythons[0]}"


# ---------------------------------------------------------------- permissions of workflows


@every_workflow
def test_a_workflow_has_only_read_permission(path: Path) -> None:
    """A job declares further permissions itself. Text of pull requests is never part of a command."""
    found = workflow(path.name)
    assert found["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in found[ON]
    for job in found["jobs"].values():
        for step in job.get("steps", ()):
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/none@v1"))
            assert "${{" not in step.get("run", "")
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_a_release_was_tested_and_tried_before_it_is_made() -> None:
    jobs = workflow("release.yml")["jobs"]
    assert workflow("release.yml")[ON] == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}}
    checked, built = commands(jobs["build"])
    assert 'python docs/release_notes.py --tag "$GITHUB_REF_NAME" > build/notes.md' in checked
    assert built == "make dist"
    assert jobs["test"]["uses"] == "./.github/workflows/ci.yml"
    assert "workflow_call" in workflow("ci.yml")[ON]
    assert jobs["release"]["needs"] == ["build", "test"]
    assert [name for name, job in jobs.items() if "permissions" in job] == ["release"]
    (published,) = commands(jobs["release"])
    assert published.startswith('gh release create "$GITHUB_REF_NAME" dist/* ')
    assert published.endswith("--notes-file build/notes.md")
