# SPDX-License-Identifier: Apache-2.0
"""Models in an Ollama store, laid out as Ollama does."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from inference_bridge.catalog import ollama
from inference_bridge.catalog.discovery import discover, lookup

from ..parts.models.gguf_files import F16, LLAMA, TensorSpec, gguf_bytes


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
    assert (found.images, found.audios) == (True, False)
    assert "Pull it again" in (models["gone-1b"].problem or "")
    assert "not valid JSON" in (models["gone-bad"].problem or "")
    assert "adapters=" in (models["tuned-1b"].problem or "")
    assert "letters GGUF" in (models["text-1b"].problem or "")
    assert lookup("llama3.2:latest", models.values()) == models["llama3.2"]


def test_the_number_of_ollama_s_models_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        ollama_tag(tmp_path, f"registry.ollama.ai/library/m/{number}", ("model", gguf_named(str(number))))
    monkeypatch.setattr(ollama, "MAX_MANIFESTS", 2)
    assert [model.name for model in discover(tmp_path)] == ["m-0", "m-1"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in directories on this platform")
def test_a_manifest_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    ollama_tag(tmp_path, "registry/library/m/1b", ("model", gguf_named("m")))
    os.mkfifo(tmp_path / "manifests" / "registry" / "library" / "m" / "2b")
    problems = {model.name: model.problem for model in discover(tmp_path)}
    assert problems == {"m-1b": None, "m-2b": "its 2b is not a regular file"}
