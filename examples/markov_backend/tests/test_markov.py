# SPDX-License-Identifier: Apache-2.0
"""The backend keeps the contract. Run with the package installed: `pip install -e . && pytest`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from inference_bridge.testing import BackendSuite, ContractSuite

RHYMES = str(Path(__file__).parents[1] / "rhymes.txt")


class TestModel(ContractSuite):
    source = f"markov:{RHYMES}"
    load_options: ClassVar = {"context_length": 1000}
    reuses_prefixes = False


class TestBackend(BackendSuite):
    name = "markov"
    source = RHYMES
    missing = "missing.txt"
    engine_modules = ("inference_bridge_markov.chain",)
