# SPDX-License-Identifier: Apache-2.0
"""Tests of the Backend that loads a model, as the registry finds it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ..availability import Availability
from ..backend import Backend
from ..errors import ModelLoadError, ModelNotFoundError, ServerError, UnsupportedError
from ..loading import load_model
from ..options import LOAD_FIELDS
from ..registry import get, names

_LOAD_SAMPLES: dict[str, Any] = {
    "context_length": 128,
    "gpu_layers": 1,
    "parallel_slots": 2,
    "threads": 1,
    "batch_size": 64,
    "chat_template": "{{ messages }}",
    "adapters": ["adapter.bin"],
    "draft_model": "draft.bin",
    "draft_ngram": 3,
    "draft_tokens": 8,
    "mmproj": "projector.bin",
    "device": "device0",
    "split_mode": "row",
    "tensor_split": (3, 1),
    "kv_cache_type": "q8_0",
    "memory_limit": 1 << 40,
    "deterministic": True,
    "vet": False,
    "prefix_cache_size": 1 << 30,
    "keep_alive": 1.0,
    "model": "model",
    "api_key": "key",
    "headers": {"a": "b"},
    "connect_timeout": 1.0,
    "first_token_timeout": 1.0,
    "ca_bundle": "ca.pem",
    "defaults": "server",
    "extra": {"a": 1},
}


class BackendSuite:
    """Tests a Backend that a plugin registers, so that other processes find it too. Set `name` and `source`."""

    name: ClassVar[str]
    """The name of the backend."""
    source: ClassVar[str]
    """A source that it loads, without the name of the backend before it."""
    load_options: ClassVar[Mapping[str, Any]] = {}
    """Load options that the source needs, such as a key."""
    missing: ClassVar[str] = "/no/such/file"
    """A source of the same kind that does not exist. "": such a source can't be tested."""
    engine_modules: ClassVar[tuple[str, ...]] = ()
    """Modules that the backend must not import before it loads a model."""

    behaviours: ClassVar[tuple[int, ...]] = ()

    @pytest.fixture
    def backend(self) -> Backend:
        return get(self.name)

    def test_it_is_registered_under_its_name(self, backend: Backend) -> None:
        assert isinstance(backend, Backend)
        assert backend.name == self.name
        assert backend.name in names()
        assert backend.name.isidentifier(), "the name comes before the colon in `name:model`"

    def test_availability_is_told(self, backend: Backend) -> None:
        availability = backend.availability()
        assert isinstance(availability, Availability)
        assert availability.ok, f"it can't run here: {availability.reason}. {availability.hint}"

    def test_availability_imports_no_engine(self) -> None:
        code = (
            "import sys; from inference_bridge import get, names; names();"
            f"backend = get({self.name!r}); backend.availability(); backend.can_load({self.source!r});"
            f"print(*(name for name in {self.engine_modules!r} if name in sys.modules))"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [], "imported before a model was loaded"

    def test_it_knows_what_it_loads(self, backend: Backend, tmp_path: Path) -> None:
        assert backend.can_load(self.source) is True
        odd = tmp_path / "odd.bin"
        odd.write_bytes(b"\0odd")
        for other in ("", str(tmp_path), str(odd), str(tmp_path / "missing.bin")):
            assert backend.can_load(other) in (True, False), "can_load never raises"

    def test_a_source_that_leads_nowhere_is_told(self) -> None:
        if self.missing:
            with pytest.raises((ModelNotFoundError, ModelLoadError, ServerError)):
                load_model(f"{self.name}:{self.missing}")

    @pytest.mark.parametrize("option", LOAD_FIELDS)
    def test_a_load_option_is_honoured_or_refused(self, backend: Backend, option: str) -> None:
        if backend.load_options is not None:
            assert backend.load_options <= set(LOAD_FIELDS)
        if backend.load_options is not None and option not in backend.load_options:
            with pytest.raises(UnsupportedError, match=option):
                load_model(f"{self.name}:{self.source}", **{option: _LOAD_SAMPLES[option]})

    def test_a_misspelt_load_option_names_the_nearest(self) -> None:
        with pytest.raises(TypeError, match="context_length"):
            load_model(f"{self.name}:{self.source}", context_lenght=3)  # type: ignore[call-arg]
