# SPDX-License-Identifier: Apache-2.0
"""The contents of the distributions, and the cost of imports."""

from __future__ import annotations

import ast
import email
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import inference_bridge

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "inference_bridge": ROOT / "inference_bridge",
    "llm_inference_bridge": ROOT / "adapters" / "llm_inference_bridge",
    "langchain_inference_bridge": ROOT / "adapters" / "langchain_inference_bridge",
}
ENGINES = {"jinja2", "llama_cpp", "llguidance", "mlx", "mlx_lm", "numpy", "psutil", "transformers", "xllamacpp"}


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def modules_after(statement: str, **environment: str) -> set[str]:
    """The names in sys.modules of a new interpreter that ran `statement`."""
    code = f"import sys; {statement}; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.split())


# ---------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, capture_output=True, timeout=120, check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_exactly_the_source_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert shipped == sources
    assert {f"{name}/py.typed" for name in PACKAGES} <= shipped


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = next(name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name)
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert metadata["Name"] == "inference-bridge"
    assert metadata["Version"] == inference_bridge.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    extras = {"cli", "http", "llama-cpp", "mlx", "metal", "server", "serve", "llm", "langchain", "otel", "demo", "all"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras
    required = {need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need}
    assert {need.partition(">")[0] for need in required} == {"pluggy", "platformdirs"}
    assert "[console_scripts]\ninference-bridge = inference_bridge.cli:main" in entry_points
    assert "llm = llm_inference_bridge.backend" in entry_points
    assert "[llm]\ninference_bridge = llm_inference_bridge" in entry_points


def test_wheel_imports_where_only_it_is(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    for name in PACKAGES:
        code = f"import {name}; print({name}.__file__)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert Path(done.stdout.strip()) == tmp_path / name / "__init__.py", done.stderr


# ---------------------------------------------------------------- importing


def foreign(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {"__main__"}


def test_import_of_the_package_imports_only_a_few_modules() -> None:
    new = modules_after("import inference_bridge") - modules_after("pass")
    assert foreign(new) == {"inference_bridge"}
    assert {name for name in new if name.startswith("inference_bridge.")} == set()


def test_every_exported_name_brings_only_pluggy_and_no_costly_part_of_the_standard_library() -> None:
    new = modules_after("from inference_bridge import *") - modules_after("pass")
    assert foreign(new) == {"inference_bridge", "pluggy"}
    costly = {"asyncio", "concurrent.futures", "difflib", "email", "http", "importlib.metadata", "logging.config"}
    costly |= {"multiprocessing", "socket", "sqlite3", "ssl", "tomllib", "unittest", "urllib.request", "zipfile"}
    assert not (new - modules_after("import pluggy")) & costly


@pytest.mark.parametrize(
    ("adapter", "ecosystem"), [("llm_inference_bridge", "llm"), ("langchain_inference_bridge", "langchain_core")]
)
def test_import_of_an_adapter_imports_no_engine_and_no_http_client(adapter: str, ecosystem: str) -> None:
    before = modules_after(f"import {ecosystem}")
    new = modules_after(f"import {ecosystem}; import {adapter}") - before
    assert adapter in new
    assert not {name.partition(".")[0] for name in new} & (ENGINES | {"httpx2", "asyncio"})


def test_options_are_the_fields_of_the_config() -> None:
    from inference_bridge.options import GenerateConfig, GenerateOptions

    assert list(GenerateOptions.__annotations__) == [field.name for field in fields(GenerateConfig)]


# ---------------------------------------------------------------- the sources


@pytest.mark.parametrize("folder", ["inference_bridge", "adapters", "tests", "benchmarks", "examples", "docs"])
def test_every_file_names_its_licence(folder: str) -> None:
    without = [
        str(path.relative_to(ROOT))
        for path in python_files(folder)
        if not path.read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: Apache-2.0\n")
    ]
    assert not without


def test_files_have_at_most_600_lines() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files("inference_bridge", "adapters")
    }
    assert not {name: length for name, length in lengths.items() if length > 600}


def imports_of(path: Path) -> Iterator[str]:
    """The absolute names of the modules a file imports, inside functions too."""
    package = path.relative_to(ROOT / "adapters" if "adapters" in path.parts else ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
