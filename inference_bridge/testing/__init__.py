# SPDX-License-Identifier: Apache-2.0
"""The contract as tests, for authors of backends and of wrappers around models. Needs pytest 9.

    from inference_bridge.testing import ContractSuite

    class TestMarkov(ContractSuite):
        source = "markov:alice.txt"

Then `pytest` tests every behaviour of the contract with this model. Each capability that the model declares must work,
and each capability that it does not declare must raise UnsupportedError. Properties of a model, such as a tolerance or
suitable prompts, are set as attributes of `Contract`.

`ContractSuite`   tests a TextModel that generates
`EmbeddingSuite`  tests an embedding model
`BackendSuite`    tests the Backend that loads the model
`Contract`        the common base, for a custom suite from the groups in this package

`pytest --contract-report FILE` writes the results as JSON: see `inference_bridge.testing.plugin`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .backends import BackendSuite as BackendSuite
    from .base import Contract as Contract
    from .embeddings import EmbeddingSuite as EmbeddingSuite
    from .suite import ContractSuite as ContractSuite

_HOMES = {"BackendSuite": "backends", "Contract": "base", "ContractSuite": "suite", "EmbeddingSuite": "embeddings"}

__all__ = ["BackendSuite", "Contract", "ContractSuite", "EmbeddingSuite"]


def __getattr__(name: str) -> object:
    # The plugin is imported at every start of pytest, the suites only when they are used.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import sys
    from importlib import import_module
    from pkgutil import iter_modules

    import pytest

    modules = [f"{__name__}.{module.name}" for module in iter_modules(__path__)]
    pytest.register_assert_rewrite(*(module for module in modules if module not in sys.modules))
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value
