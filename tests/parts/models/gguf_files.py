# SPDX-License-Identifier: Apache-2.0
"""Writes small model files, well formed or, by the raw parts, any other way."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inference_bridge.catalog.headers.gguf import TENSOR_TYPES

FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
F32, F16, Q4_1, Q8_0 = 0, 1, 3, 8


class Typed(NamedTuple):
    """A value stored in a certain type, where a plain one would be stored in the usual type."""

    type: int
    value: Any


class TensorSpec(NamedTuple):
    name: str = "token_embd.weight"
    shape: tuple[int, ...] = (64, 4)
    type: int = Q4_1

    @property
    def size(self) -> int:
        kind = TENSOR_TYPES[self.type]
        return math.prod(self.shape) // kind.block * kind.block_bytes


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    """A value with its type in front."""
    type_, payload = _encode(item)
    return struct.pack("<I", type_) + payload


def _encode(item: Any) -> tuple[int, bytes]:
    if isinstance(item, Typed):
        return item.type, struct.pack("<" + FORMS[item.type], item.value)
    if isinstance(item, bool):
        return 7, struct.pack("<?", item)
    if isinstance(item, int):
        return (4, struct.pack("<I", item)) if 0 <= item < 1 << 32 else (11, struct.pack("<q", item))
    if isinstance(item, float):
        return 6, struct.pack("<f", item)
    if isinstance(item, str | bytes):
        return 8, string(item)
    items = [_encode(one) for one in item]
    type_ = items[0][0] if items else 4
    assert all(one[0] == type_ for one in items), "an array's items are of one type"
    return 9, struct.pack("<IQ", type_, len(items)) + b"".join(one[1] for one in items)


def header(
    values: Mapping[str, Any],
    tensors: Sequence[TensorSpec] = (),
    *,
    version: int = 3,
    alignment: int = 32,
    num_values: int | None = None,
    num_tensors: int | None = None,
) -> bytes:
    """All that comes before the tensors' data, without the padding."""
    counts = (len(tensors) if num_tensors is None else num_tensors, len(values) if num_values is None else num_values)
    parts = [b"GGUF", struct.pack("<IQQ", version, *counts)]
    parts += [string(key) + value(item) for key, item in values.items()]
    offset = 0
    for tensor in tensors:
        parts.append(string(tensor.name) + struct.pack("<I", len(tensor.shape)))
        parts.append(struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, tensor.type, offset))
        offset += -(-tensor.size // alignment) * alignment
    return b"".join(parts)


def gguf_bytes(values: Mapping[str, Any], tensors: Sequence[TensorSpec] = (), *, alignment: int = 32) -> bytes:
    data = header(values, tensors, alignment=alignment)
    data += bytes(-len(data) % alignment)
    for number, tensor in enumerate(tensors):
        last = number == len(tensors) - 1
        data += bytes(tensor.size if last else -(-tensor.size // alignment) * alignment)
    return data


LLAMA = {
    "general.architecture": "llama",
    "general.type": "model",
    "llama.block_count": 2,
    "llama.context_length": 2048,
    "llama.embedding_length": 64,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "b", "c"],
}


def write_model(
    path: Path,
    values: Mapping[str, Any] | None = None,
    tensors: Sequence[TensorSpec] = (TensorSpec(),),
    *,
    cut: int = 0,
) -> Path:
    """A GGUF file whose header describes a small llama, with `values` over it, `cut` bytes short."""
    data = gguf_bytes({**LLAMA, **(values or {})}, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[: len(data) - cut])
    return path


def write_projector(path: Path, **sizes: int) -> Path:
    """A projector; `sizes` are clip keys with dots written as two underscores."""
    values: dict[str, Any] = {"general.architecture": "clip"}
    values |= {f"clip.{key.replace('__', '.')}": size for key, size in sizes.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gguf_bytes(values, [TensorSpec("mm.0.weight", (4, 4), F16)]))
    return path


def safetensors_bytes(weights: int = 16) -> bytes:
    """Return a safetensors file with one tensor of `weights` 16-bit weights."""
    tensor = {"dtype": "BF16", "shape": [weights], "data_offsets": [0, 2 * weights]}
    text = json.dumps({"__metadata__": {"format": "mlx"}, "model.norm.weight": tensor}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(2 * weights)


def write_checkpoint(
    directory: Path, config: Mapping[str, Any] | None = None, files: Sequence[str] = ("model.safetensors",)
) -> Path:
    """An MLX model directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"} if config is None else config))
    for file in files:
        (directory / file).write_bytes(safetensors_bytes())
    return directory
