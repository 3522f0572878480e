# SPDX-License-Identifier: Apache-2.0
"""The environment of the contract suites: imports, names of groups, the report, and the table made from it."""

from __future__ import annotations

import inspect
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inference_bridge import testing
from inference_bridge.testing import BackendSuite, Contract, ContractSuite, EmbeddingSuite
from inference_bridge.testing.base import Contract as Base

ROOT = Path(__file__).parents[2]

SUITES = """
from inference_bridge.testing import Contract
from tests.parts.models.tiny import Words

class TestThese(Contract):
    behaviours = (1, 11)

    @classmethod
    def load(cls):
        model = Words()
        model.backend = "words"
        return model

    def test_good(self, model): ...
    def test_bad(self, model): assert not model.options == frozenset()
    def test_modes(self, model, caller): ...

def test_another(): ...
"""


# ---------------------------------------------------------------- imports and names


def test_names() -> None:
    assert sorted(testing.__all__) == ["BackendSuite", "Contract", "ContractSuite", "EmbeddingSuite"]
    assert Contract is Base
    with pytest.raises(AttributeError, match="ContractSiute"):
        testing.ContractSiute  # noqa: B018


def test_the_plugin_imports_nothing_heavy() -> None:
    """pytest imports it in every project of an environment that has this package."""
    code = (
        "import pytest, sys; before = set(sys.modules); import inference_bridge.testing.plugin;"
        "print(*sorted(name for name in set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    ours = {"inference_bridge", "inference_bridge.testing", "inference_bridge.testing.plugin"}
    assert {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names} == ours


def test_groups_do_not_override_methods_of_other_groups() -> None:
    """All are bases of one class, so two of one name would be one."""
    for suite in (ContractSuite, EmbeddingSuite):
        homes: dict[str, str] = {}
        for group in suite.__mro__:
            if group in (object, Contract, suite):
                continue
            for name in vars(group):
                if not name.startswith("__") and name != "behaviours":
                    assert homes.setdefault(name, group.__name__) == group.__name__, name


def test_every_behaviour_has_its_tests() -> None:
    told = {number for group in ContractSuite.__mro__ for number in vars(group).get("behaviours", ())}
    assert told == set(range(1, 12))


@pytest.mark.parametrize("suite", [ContractSuite, EmbeddingSuite, BackendSuite], ids=lambda suite: suite.__name__)
def test_every_attribute_for_authors_is_documented(suite: type) -> None:
    for cls in suite.__mro__[:-1]:
        source = inspect.getsource(cls)
        for name in vars(cls).get("__annotations__", {}):
            if name not in ("behaviours", "load_options", "tool", "schema"):
                declaration = source.index(f"    {name}: ClassVar")
                assert '"""' in source[declaration : declaration + 600].partition("\n    def ")[0], name


def test_a_suite_without_a_model_is_an_error() -> None:
    class Nameless(Contract):
        pass

    with pytest.raises(pytest.fail.Exception, match="Nameless needs a source, or a load"):
        Nameless.load()


# ---------------------------------------------------------------- the report, and the table


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suites")
    (folder / "test_suites.py").write_text(SUITES)
    (folder / "pytest.ini").write_text("[pytest]\n")
    path = folder / "report.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "inference_bridge.testing.plugin"]
    done = subprocess.run(
        [*command, "--contract-report", str(path)],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    return path


def test_the_report(report: Path) -> None:
    (suite,) = json.loads(report.read_text())["suites"]
    assert suite == {
        "suite": "test_suites.py::TestThese",
        "whole": False,
        "backend": "words",
        "model_type": "tiny",
        "capabilities": [],
        "options": [],
        "parallel": 1,
        "behaviours": {key: {"passed": 3, "skipped": 0, "failed": 1} for key in ("1", "11")},
        "tests": {
            "test_good": "passed",
            "test_bad": "failed",
            "test_modes[sync]": "passed",
            "test_modes[async]": "passed",
        },
    }


def test_the_table_of_capabilities(report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main: Any = runpy.run_path(str(ROOT / "docs" / "capabilities.py"))["main"]
    more = tmp_path / "more.json"
    plain = {"suite": "a.py::TestModel", "whole": True, "backend": "plain", "capabilities": [], "options": ["stop"]}
    able = {"suite": "b.py::TestBigServer", "whole": True, "backend": "able", "capabilities": ["chat", "odd"]}
    plain["tests"] = {"test_a": "passed", "test_b": "failed", "test_c": "skipped"}
    able |= {"options": ["seed"], "tests": {"test_a": "passed"}}
    unmade = {"suite": "c.py::TestModel", "whole": True, "tests": {}}
    more.write_text(json.dumps({"suites": [plain, able, unmade]}))
    assert main([str(report), str(more), "--options"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["|  | able: big server | plain |", "|---|---|---|", "| conversations | yes | no |"]
    assert lines[-3:] == [
        "| `seed` | yes | no |",
        "| `stop` | no | yes |",
        "| contract tests passed | 1 of 1 | 1 of 2 |",
    ]
    assert "| odd | yes | no |" in lines

    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- capabilities -->\nold\n<!-- /capabilities -->\nafter\n")
    for _ in range(2):
        assert main([str(more), "--write", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("Before\n<!-- capabilities -->\n|  | able: big server | plain |")
    assert text.endswith("|\n<!-- /capabilities -->\nafter\n")
    assert "old" not in text
    page.write_text("no markers")
    assert main([str(more), "--write", str(page)]) == 1
    assert "has no <!-- capabilities -->" in capsys.readouterr().err
