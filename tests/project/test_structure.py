# SPDX-License-Identifier: Apache-2.0
"""Simple sources: no duplicate functions, no unused code, no unexpected imports.

Licences and lengths are in test_packaging, the direction of imports is in test_layers.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from vulture import Vulture

from tests.project.test_packaging import ROOT, imports_of, python_files

DOCS = ROOT / "docs"
PACKAGES = ("inference_bridge", "adapters")


# ---------------------------------------------------------------- no duplicates

SMALL = 4
"""Statements up to which two functions may be the same by chance."""


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def shape(function: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[int, str]:
    """The number of statements of a function, and its code without its name, docstring and types."""
    body = function.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    count = sum(isinstance(node, ast.stmt) for part in body for node in ast.walk(part))
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return count, "\n".join([", ".join(names), *map(ast.dump, body)])


def test_no_function_is_written_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in python_files(*PACKAGES):
        for place, function in functions(path):
            count, what = shape(function)
            if count > SMALL and function.name != "__getattr__":  # a module's own, which has its names
                places[what].append(place)
    assert [same for same in places.values() if len(same) > 1] == []


# ---------------------------------------------------------------- no unused code

# Names that a library, or Python itself, looks up on our objects.
LOOKED_UP = {
    *("__getattr__", "__dir__"),
    # pydantic and LangChain
    *("model_config", "streaming", "server_model", "is_lc_serializable", "lc_secrets"),
    *("_agenerate", "_astream", "_generate", "_resolve_model_profile"),
    *("_provider", "_classify", "_aclassify"),
    # llm
    *("register_commands", "embed_batch", "key_env_var", "response_json"),
    # starlette
    "media_type",
    # jinja2
    "tags",
    # llguidance
    "bos_token_id",
    # mlx-lm
    *("make_mask", "update_and_fetch", "offset"),
    # pytest
    *("pytest_addoption", "pytest_configure", "pytest_runtest_makereport", "pytest_sessionfinish"),
    # the garbage collector
    *("_task", "_waker"),
}

# What is done by the decorator alone.
DECORATORS = ["@atexit.register", "@*.command", "@*.command(*)", "@*validator*"]


def test_there_is_no_unused_code() -> None:
    """Code that only a test or the documentation uses may be part of the contract, so the whole repository counts."""
    search = Vulture(ignore_decorators=DECORATORS)
    search.scavenge([ROOT / folder for folder in (*PACKAGES, "tests", "benchmarks", "examples")])
    documented = set(re.findall(r"\w+", "\n".join(path.read_text(encoding="utf-8") for path in DOCS.glob("*.md"))))
    unused = [
        f"{item.filename.relative_to(ROOT)}:{item.first_lineno} {item.typ} {item.name}"
        for item in search.get_unused_code(min_confidence=60)
        if item.filename.relative_to(ROOT).parts[0] in PACKAGES
        and item.name not in LOOKED_UP
        and (item.name.startswith("_") or item.name not in documented)
        # an attribute of a library's object is read by the library
        and (item.typ != "attribute" or f"self.{item.name}" in source_line(item.filename, item.first_lineno))
    ]
    assert unused == []


def source_line(path: Path, number: int) -> str:
    return path.read_text(encoding="utf-8").splitlines()[number - 1]


# ---------------------------------------------------------------- no unexpected imports

CORE = {"opentelemetry", "platformdirs", "pluggy"}


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("inference_bridge", CORE),
        ("inference_bridge/_cache", CORE),
        ("inference_bridge/_calls", set()),
        ("inference_bridge/_concurrency", set()),
        ("inference_bridge/authoring", {"jsonschema_rs"}),
        ("inference_bridge/decisions", set()),
        ("inference_bridge/chat", {"jinja2", "psutil", "regex"}),
        ("inference_bridge/grammar", {"llguidance", "numpy"}),
        ("inference_bridge/engine", {"numpy", "psutil"}),
        ("adapters/llm_inference_bridge", {"click", "llm", "pluggy", "pydantic", "pydantic_core"}),
        ("adapters/langchain_inference_bridge", {"langchain", "langchain_core", "pydantic"}),
    ],
)
def test_each_layer_imports_only_its_own_libraries(folder: str, allowed: set[str]) -> None:
    """Imports inside functions count too: they are optional, but not unlimited."""
    files = sorted((ROOT / folder).glob("*.py")) if folder == "inference_bridge" else python_files(folder)
    own = {"inference_bridge", Path(folder).name, *sys.stdlib_module_names}
    foreign = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports_of(path)
        if name.partition(".")[0] not in own | allowed
    }
    assert foreign == set()
