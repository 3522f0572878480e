# SPDX-License-Identifier: Apache-2.0
"""Targets: files that somebody made. Each is read or refused in the one way that is documented."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from unittest import mock

from inference_bridge.backends.llama_cpp.media import image_header, sound_header
from inference_bridge.catalog import config as configuration
from inference_bridge.catalog import gguf_checks
from inference_bridge.catalog.headers.checkpoint import Checkpoint, read_checkpoint
from inference_bridge.catalog.headers.gguf import GGUFError, Skipped, read_metadata
from inference_bridge.errors import ModelLoadError
from inference_bridge.options import GenerateConfig
from inference_bridge.types import ModelInfo

KEPT = ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.chat_template")


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fuzz-")


def _written(name: str, data: bytes) -> Path:
    path = Path(_folder().name) / name
    path.write_bytes(data)
    return path


# ---------------------------------------------------------------- GGUF


def gguf(data: bytes) -> None:
    path = _written("model.gguf", data)
    for keep in ((), KEPT):
        try:
            read = read_metadata(path, keep=keep)
        except GGUFError as error:
            assert (error.path, bool(error.problem)) == (str(path), True)  # noqa: PT017
            continue
        assert read.kind in ("model", "projector", "adapter", "vocabulary", "other")
        assert isinstance(read.info, ModelInfo)
        assert isinstance(read.sampling, GenerateConfig)
        assert isinstance(read.embeds, bool)
        assert read.missing_bytes >= 0
        assert all(count >= 0 for count in read.elements.values())
        assert not any(isinstance(read.values[key], Skipped) for key in KEPT if keep and key in read.values)
        try:
            gguf_checks.check(read)
        except ModelLoadError:
            continue
        with mock.patch.object(gguf_checks._log, "info"), mock.patch.object(gguf_checks._log, "warning"):
            assert gguf_checks.context_length(read, 0, 4, 1 << 30) > 0


# ---------------------------------------------------------------- pictures and sounds


def image(data: bytes) -> None:
    if _accepted(image_header.check, data):
        width, height = image_header.size(data) or (0, 0)
        assert 0 <= width * height <= image_header.MAX_PIXELS


def sound(data: bytes) -> None:
    if not _accepted(sound_header.check, data):
        return
    if data.startswith(b"RIFF"):
        assert 0 < sound_header._wav_seconds(data) <= sound_header.MAX_SECONDS
    else:
        assert data.startswith((b"ID3", b"\xff"))


def _accepted(check: Callable[[bytes], None], data: bytes) -> bool:
    try:
        check(data)
    except ValueError as error:
        assert str(error)  # noqa: PT017
        return False
    return True


# ---------------------------------------------------------------- checkpoints


def _checkpoint(name: str, data: bytes) -> None:
    """A whole checkpoint but for the one file. Reading it never raises."""
    folder = Path(_folder().name) / name.replace(".", "-")
    if not folder.exists():
        folder.mkdir()
        (folder / "config.json").write_bytes(b'{"model_type": "llama"}')
        (folder / "model.safetensors").write_bytes(bytes(16))
    (folder / name).write_bytes(data)
    found = read_checkpoint(str(folder), {entry.name: entry.stat().st_size for entry in os.scandir(folder)})
    assert isinstance(found, Checkpoint)
    assert isinstance(found.model_type, str)
    assert 0 <= found.quant_bits <= 32
    assert 0 <= found.quant_group < 1 << 31
    assert 0 <= found.context_length < 1 << 31
    assert set(found.files) <= {"model.safetensors"}
    assert found.problem is None or found.problem.isprintable()


def config(data: bytes) -> None:
    _checkpoint("config.json", data)


def index(data: bytes) -> None:
    _checkpoint("model.safetensors.index.json", data)


def safetensors(data: bytes) -> None:
    _checkpoint("model.safetensors", data)


# ---------------------------------------------------------------- the configuration file


def toml(data: bytes) -> None:
    path = _written("config.toml", data)
    with mock.patch.dict(os.environ, {"INFERENCE_BRIDGE_CONFIG": str(path)}):
        read = configuration.load()
    for problem in read.problems:
        assert str(path) in str(problem)
    for name, model in read.models.items():
        assert name == model.name
        assert model.source
        assert model.load.api_key is None
    assert all(map(os.path.isabs, (*read.directories, *read.programs.values())))
