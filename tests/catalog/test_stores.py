# SPDX-License-Identifier: Apache-2.0
"""Places that are searched for models: stores of other programs, configured directories, installed packages."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from inference_bridge.catalog import stores
from inference_bridge.catalog.config import load
from inference_bridge.catalog.discovery import default_directories, discover, lookup

from ..parts.models.gguf_files import LLAMA, TensorSpec, gguf_bytes, safetensors_bytes, write_model


def hub_snapshot(cache: Path, repository: str, revision: str, files: dict[str, bytes], *, main: bool = True) -> Path:
    """Files as huggingface_hub lays them out: a snapshot of links to blobs."""
    home = cache / f"models--{repository.replace('/', '--')}"
    for name, data in files.items():
        blob = home / "blobs" / hashlib.sha256(data).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link = home / "snapshots" / revision / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if main:
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / "main").write_text(revision)
    return home / "snapshots" / revision


CHECKPOINT = {"config.json": b'{"model_type": "qwen3"}', "model.safetensors": safetensors_bytes()}
MODEL = gguf_bytes(LLAMA, [TensorSpec()])


def test_the_hugging_face_cache(home: Path) -> None:
    cache = home / ".cache" / "huggingface" / "hub"
    mlx = hub_snapshot(cache, "mlx-community/Qwen3-4B-4bit", "a" * 40, CHECKPOINT)
    hub_snapshot(cache, "gpt2", "b" * 40, CHECKPOINT | {"config.json": b'{"model_type": "gpt2"}'}, main=False)
    gguf = hub_snapshot(cache, "maker/Tiny-GGUF", "c" * 40, {"q4/Tiny-Q4.gguf": MODEL, "config.json": b"{}"})
    hub_snapshot(cache, "other/Tiny-GGUF", "d" * 40, {"q4/Tiny-Q4.gguf": MODEL})
    (cache / "models--gpt2" / ".no_exist" / ("b" * 40)).mkdir(parents=True)
    (cache / "models--gpt2" / ".no_exist" / ("b" * 40) / "empty.gguf").touch()
    models = {model.name: model for model in discover() if model.path.startswith(str(cache))}
    assert {name: model.path for name, model in models.items()} == {
        "mlx-community/Qwen3-4B-4bit": str(mlx),
        "gpt2": str(cache / "models--gpt2" / "snapshots" / ("b" * 40)),
        "maker/Tiny-GGUF/q4/Tiny-Q4": str(gguf / "q4" / "Tiny-Q4.gguf"),
        "other/Tiny-GGUF/q4/Tiny-Q4": str(cache / f"models--other--Tiny-GGUF/snapshots/{'d' * 40}/q4/Tiny-Q4.gguf"),
    }
    assert models["gpt2"].model_type == "gpt2"
    assert lookup("MAKER/Tiny-GGUF/q4/tiny-q4", models.values()) == models["maker/Tiny-GGUF/q4/Tiny-Q4"]
    assert all(model.problem is None for model in models.values())


def test_revisions_of_a_repository(tmp_path: Path) -> None:
    old = CHECKPOINT | {"model.safetensors": safetensors_bytes(8)}
    hub_snapshot(tmp_path, "org/m", "0123456789" * 4, old, main=False)
    hub_snapshot(tmp_path, "org/m", "a" * 40, CHECKPOINT | {"README.md": b"old"}, main=False)
    main = hub_snapshot(tmp_path, "org/m", "b" * 40, CHECKPOINT | {"README.md": b"new"})
    models = discover(tmp_path)
    assert [model.name for model in models] == ["org/m", "org/m@01234567"]
    assert models[0].path == str(main)
    assert [model.name for model in discover(main)] == ["org/m"]


@pytest.mark.parametrize(
    ("variable", "value", "place"),
    [
        ("HF_HOME", "{}/h", "h/hub"),
        ("HF_HUB_CACHE", "{}/hub", "hub"),
        ("HUGGINGFACE_HUB_CACHE", "{}/old", "old"),
        ("XDG_CACHE_HOME", "{}/x", "x/huggingface/hub"),
        ("XDG_CACHE_HOME", "{}/x", "x/llama.cpp"),
        ("LLAMA_CACHE", "{}/llama", "llama"),
        ("OLLAMA_MODELS", "{}/ollama", "ollama"),
        ("HOME", "{}/me", "me/.lmstudio/models"),
        ("HOME", "{}/me", "me/.cache/lm-studio/models"),
        ("HOME", "{}/me", "me/.ollama/models"),
        ("INFERENCE_BRIDGE_MODELS", "{}/mine", "mine"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="other platforms have other places")
def test_places_that_are_searched_for_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, place: str
) -> None:
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setenv(variable, value.format(tmp_path))
    directory = tmp_path / place
    if variable != "INFERENCE_BRIDGE_MODELS":
        assert str(directory) not in default_directories()
    path = write_model(directory / "maker" / "m.gguf")
    assert str(directory) in default_directories()
    found = lookup("m", discover())
    assert found is not None
    assert found.path == str(path)


@pytest.mark.parametrize(("platform", "place"), [("darwin", "Library/Caches"), ("win32", "AppData/Local")])
def test_the_cache_directory_of_llama_cpp_on_other_platforms(
    home: Path, monkeypatch: pytest.MonkeyPatch, platform: str, place: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("LOCALAPPDATA", str(home / "AppData" / "Local"))
    (home / place / "llama.cpp").mkdir(parents=True)
    assert str(home / place / "llama.cpp") in stores.directories()


def test_configured_directories_and_extra_ones(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = home / "c.toml"
    settings.write_text('directories = ["mine"]')
    monkeypatch.setenv("INFERENCE_BRIDGE_CONFIG", str(settings))
    assert default_directories(["/plugin"])[:2] == [str(home / "mine"), "/plugin"]
    write_model(home / "mine" / "m.gguf")
    assert lookup("m", discover()) is not None
    settings.write_text("directory = []")
    assert "m" not in [model.name for model in discover()]
    assert [problem.key for problem in load().problems] == ["directory"]
    assert [model.name for model in discover(home / "mine")] == ["m"]


def test_a_snapshot_whose_repository_can_not_be_listed_has_its_revision_in_its_name(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123456789abcdef"
    parts, inside = stores.hub_parts(str(snapshot))
    assert parts[-inside:] == ("org", "name@01234567")


def test_packages_that_ship_a_model(demo_model_path: Path) -> None:
    directories = default_directories()
    assert str(demo_model_path.parent) in directories
    found = lookup("SmolLM2-135M-Instruct.Q4_1", discover())
    assert found is not None
    assert os.path.samefile(found.path, demo_model_path)


def test_a_package_is_found_by_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "my, models" / "data" / "m.gguf")
    write_model(tmp_path / "beside.gguf")
    record = tmp_path / "my_models-1.0.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text('"my, models/data/m.gguf",sha256=x,99\nbeside.gguf,,\nmy/__init__.py,,\nx.gguf.py,,\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert str(tmp_path / "my, models" / "data") in default_directories()
    assert str(tmp_path) not in default_directories()
