# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import inference_bridge as ib
from inference_bridge import Token
from llm_inference_bridge.models import InferenceBridge

from ...parts.llm_plugin import Play, Scripted, ScriptedBackend, offered


@pytest.fixture
def models_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(home / "models"))
    return home / "models"


@pytest.fixture
def play(configure: Callable[[str], Path]) -> Play:
    """A model for llm that gives these answers, and the TextModel behind it."""

    def make(*answers: Sequence[Token], options: str = "") -> tuple[InferenceBridge, Scripted]:
        configure(f'[models.play]\nsource = "scripted:play"\n[models.play.options]\n{options}')
        ib.register(ScriptedBackend(scripted := Scripted(answers)))
        return offered()["scripted:play"][0], scripted

    return make
