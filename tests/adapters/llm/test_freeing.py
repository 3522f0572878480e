# SPDX-License-Identifier: Apache-2.0
"""Model objects of llm that are dropped: their models are freed, on a real engine."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import llm
import pytest

from inference_bridge import TextModel


@pytest.fixture
def named(home: Path, demo_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], llm.Model]:
    (home / "config").mkdir(parents=True, exist_ok=True)
    path = home / "config" / "config.toml"
    sizes = {"small": 256, "middle": 512, "large": 768}
    path.write_text(
        "".join(
            f'[models.{name}]\nsource = "{demo_model_path}"\ncontext_length = {size}\nparallel_slots = 1\nthreads = 1\n'
            for name, size in sizes.items()
        )
    )
    monkeypatch.setenv("INFERENCE_BRIDGE_CONFIG", str(path))

    def get(name: str) -> llm.Model:
        model: llm.Model = llm.get_model(f"llama_cpp:{name}")
        return model

    return get


def test_models_of_dropped_objects_are_freed_all_but_the_last(named: Callable[[str], llm.Model]) -> None:
    loaded: list[weakref.ref[TextModel]] = []
    for name in ("small", "middle", "large"):
        model = named(name)
        model.prompt("hi", max_tokens=2, temperature=0).text()
        loaded.append(weakref.ref(model.text_model()))  # type: ignore[attr-defined]
        del model
        gc.collect()
        assert [reference() is not None for reference in loaded] == [*[False] * (len(loaded) - 1), True]
    again = named("large")
    assert again.text_model() is loaded[-1]()  # type: ignore[attr-defined]
    again.text_model().close()  # type: ignore[attr-defined]


def test_a_model_stays_while_an_object_that_used_it_does(named: Callable[[str], llm.Model]) -> None:
    kept = named("small")
    kept.prompt("hi", max_tokens=2, temperature=0).text()
    loaded = weakref.ref(kept.text_model())  # type: ignore[attr-defined]
    other = named("middle")
    other.prompt("hi", max_tokens=2, temperature=0).text()
    gc.collect()
    assert kept.text_model() is loaded()  # type: ignore[attr-defined]
    for model in (kept, other):
        model.text_model().close()  # type: ignore[attr-defined]
