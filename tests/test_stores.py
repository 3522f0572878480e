# SPDX-License-Identifier: Apache-2.0
"""Where models are looked for: the stores of other programs, configured directories, installed packages."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from inference_bridge import stores
from inference_bridge.discovery import default_directories, discover, lookup
from inference_bridge.errors import ConfigError

from .gguf_files import (
    F16,
    LLAMA,
    TensorSpec,
    gguf_bytes,
    safetensors_bytes,
    write_model,
)


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
def test_where_models_are_looked_for(
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
def test_where_llama_cpp_keeps_models_elsewhere(
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
    with pytest.raises(ConfigError):
        discover()
    assert [model.name for model in discover(home / "mine")] == ["m"]


def test_a_snapshot_whose_repository_can_not_be_listed_has_its_revision_in_its_name(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123456789abcdef"
    parts, inside = stores.hub_parts(str(snapshot))
    assert parts[-inside:] == ("org", "name@01234567")


def ollama_tag(store: Path, tag: str, *layers: tuple[str, bytes], absent: bool = False) -> list[Path]:
    blobs = []
    manifest: dict[str, Any] = {"schemaVersion": 2, "layers": []}
    for kind, data in layers:
        digest = hashlib.sha256(data).hexdigest()
        blobs.append(store / "blobs" / f"sha256-{digest}")
        blobs[-1].parent.mkdir(parents=True, exist_ok=True)
        if not absent:
            blobs[-1].write_bytes(data)
        media = f"application/vnd.ollama.image.{kind}"
        manifest["layers"].append({"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)})
    path = store / "manifests" / tag
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    return blobs


def gguf_named(name: str) -> bytes:
    return gguf_bytes(LLAMA | {"general.name": name}, [TensorSpec(type=F16)])


def test_an_ollama_store(tmp_path: Path) -> None:
    library = "registry.ollama.ai/library"
    small, _ = ollama_tag(tmp_path, f"{library}/llama3.2/3b", ("model", gguf_named("a")), ("params", b"{}"))
    ollama_tag(tmp_path, f"{library}/llama3.2/latest", ("model", gguf_named("a")))
    (gemma, eye) = ollama_tag(tmp_path, f"{library}/gemma3/4b", ("model", gguf_named("b")), ("projector", b"x"))
    (hub,) = ollama_tag(tmp_path, "hf.co/maker/Tiny-GGUF/Q4_K_M", ("model", gguf_named("c")))
    ollama_tag(tmp_path, f"{library}/gone/1b", ("model", gguf_named("d")), absent=True)
    ollama_tag(tmp_path, f"{library}/tuned/1b", ("model", gguf_named("e")), ("adapter", b"lora"))
    ollama_tag(tmp_path, f"{library}/tensors/1b", ("tensor", b"t"))
    ollama_tag(tmp_path, f"{library}/text/1b", ("model", b"text"))
    ollama_tag(tmp_path, "example.com/library/gemma3/4b", ("model", gguf_named("f")))
    evil = {"layers": [None, {}, {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../etc/x"}]}
    (tmp_path / "manifests" / library / "gone" / "evil").write_text(json.dumps(evil))
    (tmp_path / "manifests" / library / "gone" / "bad").write_text("{")
    ollama_tag(tmp_path, f"{library}/lora/1b", ("model", gguf_bytes({"general.type": "adapter"}, [TensorSpec()])))
    ollama_tag(tmp_path, "stray", ("model", gguf_named("g")))
    ollama_tag(tmp_path, f"{library}/llama3.2/.hidden", ("model", gguf_named("h")))
    models = {model.name: model for model in discover(tmp_path)}
    assert models.keys() == {
        *("llama3.2", "Tiny-GGUF-Q4_K_M", "gone-1b", "gone-bad", "tuned-1b", "text-1b"),
        *("registry.ollama.ai/library/gemma3-4b", "example.com/library/gemma3-4b"),
    }
    assert models["llama3.2"].path == str(small)
    assert models["Tiny-GGUF-Q4_K_M"].path == str(hub)
    assert models["Tiny-GGUF-Q4_K_M"].quant_bits == 16
    found = models["registry.ollama.ai/library/gemma3-4b"]
    assert (found.path, found.mmproj, found.model_type) == (str(gemma), str(eye), "llama")
    assert "Pull it again" in (models["gone-1b"].problem or "")
    assert "not valid JSON" in (models["gone-bad"].problem or "")
    assert "adapters=" in (models["tuned-1b"].problem or "")
    assert "letters GGUF" in (models["text-1b"].problem or "")
    assert lookup("llama3.2:latest", models.values()) == models["llama3.2"]


def test_the_number_of_ollama_s_models_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        ollama_tag(tmp_path, f"registry.ollama.ai/library/m/{number}", ("model", gguf_named(str(number))))
    monkeypatch.setattr(stores, "MAX_MANIFESTS", 2)
    assert [model.name for model in discover(tmp_path)] == ["m-0", "m-1"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in directories on this platform")
def test_a_manifest_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    ollama_tag(tmp_path, "registry/library/m/1b", ("model", gguf_named("m")))
    os.mkfifo(tmp_path / "manifests" / "registry" / "library" / "m" / "2b")
    problems = {model.name: model.problem for model in discover(tmp_path)}
    assert problems == {"m-1b": None, "m-2b": "its 2b is not a regular file"}


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
