# SPDX-License-Identifier: Apache-2.0
"""Random projectors of a hundred kilobytes, with which the random models of `tiny_gguf` see; and pictures for them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from .tiny_gguf import (
    CHAT_TEMPLATE,
    FEED_FORWARD,
    HEAD_SIZE,
    HEADS,
    LAYERS,
    WIDTH,
    _add_layer,
    _finish,
    _of_ascii,
    _random,
    _writer,
    write_llama,
    write_sliding_window,
)

SIDE, PATCH = 32, 8
IMAGE_TOKENS = (SIDE // PATCH) ** 2
"""What any picture comes to: it is scaled to a square of `SIDE` pixels, and each square of `PATCH` makes one."""

_WIDTH, _FEED_FORWARD = 32, 48


def _vision(path: Path, kind: str, patch: int, blocks: int) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    if kind:
        writer.add_clip_projector_type(kind)
    writer.add_vision_projection_dim(WIDTH)
    writer.add_vision_image_size(SIDE)
    writer.add_vision_patch_size(patch)
    writer.add_vision_embedding_length(_WIDTH)
    writer.add_vision_feed_forward_length(_FEED_FORWARD)
    writer.add_vision_block_count(blocks)
    writer.add_vision_head_count(2)
    writer.add_vision_attention_layernorm_eps(1e-5)
    writer.add_vision_image_mean([0.5, 0.5, 0.5])
    writer.add_vision_image_std([0.5, 0.5, 0.5])
    return writer


def _add_blocks(writer: gguf.GGUFWriter, random: Callable[..., np.ndarray], count: int) -> None:
    """The vision transformer. The tensors here and below are those that llama.cpp's tools/mtmd/clip.cpp asks for."""
    ones, zeros = np.ones(_WIDTH, dtype=np.float32), np.zeros(_WIDTH, dtype=np.float32)
    for layer in range(count):
        name = f"v.blk.{layer}."
        for norm in ("ln1", "ln2"):
            writer.add_tensor(f"{name}{norm}.weight", ones)
            writer.add_tensor(f"{name}{norm}.bias", zeros)
        for matrix in ("attn_q", "attn_k", "attn_v", "attn_out"):
            writer.add_tensor(f"{name}{matrix}.weight", random(_WIDTH, _WIDTH))
            writer.add_tensor(f"{name}{matrix}.bias", zeros)
        writer.add_tensor(f"{name}ffn_up.weight", random(_FEED_FORWARD, _WIDTH))
        writer.add_tensor(f"{name}ffn_up.bias", np.zeros(_FEED_FORWARD, dtype=np.float32))
        writer.add_tensor(f"{name}ffn_down.weight", random(_WIDTH, _FEED_FORWARD))
        writer.add_tensor(f"{name}ffn_down.bias", zeros)


def write_projector(path: Path, seed: int = 2, width: int = WIDTH) -> Path:
    """LLaVA 1.5's, in small: a CLIP's vision transformer, and a perceptron into the `width` of the text model.

    It reads the layer before the last, so that one of the two is used.
    """
    writer = _vision(path, "mlp", PATCH, 2)
    _add_eyes(writer, _random(seed), width)
    _finish(writer)
    return path


def _add_eyes(writer: gguf.GGUFWriter, random: Callable[..., np.ndarray], width: int) -> None:
    writer.add_tensor("v.patch_embd.weight", random(_WIDTH, 3, PATCH, PATCH))
    writer.add_tensor("v.position_embd.weight", random(IMAGE_TOKENS, _WIDTH))
    _add_blocks(writer, random, 2)
    writer.add_tensor("mm.0.weight", random(width, _WIDTH))
    writer.add_tensor("mm.0.bias", np.zeros(width, dtype=np.float32))
    writer.add_tensor("mm.2.weight", random(width, width))
    writer.add_tensor("mm.2.bias", np.zeros(width, dtype=np.float32))


def write_gemma3(directory: Path) -> tuple[Path, Path]:
    """A Gemma 3 and its projector: 16 tokens a picture, all of which see each other."""
    path = directory / "mmproj-gemma3.gguf"
    writer = _vision(path, "gemma3", 4, 1)
    writer.add_bool("clip.use_gelu", True)
    writer.add_uint32("clip.vision.projector.scale_factor", 2)
    random = _random(5)
    writer.add_tensor("v.patch_embd.weight", random(_WIDTH, 3, 4, 4))
    writer.add_tensor("v.patch_embd.bias", np.zeros(_WIDTH, dtype=np.float32))
    writer.add_tensor("v.position_embd.weight", random((SIDE // 4) ** 2, _WIDTH))
    _add_blocks(writer, random, 1)
    _add_last_norm(writer)
    writer.add_tensor("mm.soft_emb_norm.weight", np.ones(_WIDTH, dtype=np.float32))
    writer.add_tensor("mm.input_projection.weight", random(_WIDTH, WIDTH))
    _finish(writer)
    return write_sliding_window(directory / "gemma3.gguf", 2048), path


def write_qwen(directory: Path) -> tuple[Path, Path]:
    """A Qwen2-VL and its projector: as many tokens as the picture is large, whose positions have dimensions."""
    path = directory / "mmproj-qwen.gguf"
    writer = _vision(path, "qwen2vl_merger", 4, 1)
    writer.add_bool("clip.use_gelu", True)
    random = _random(6)
    writer.add_tensor("v.patch_embd.weight", random(_WIDTH, 3, 4, 4))
    writer.add_tensor("v.patch_embd.weight.1", random(_WIDTH, 3, 4, 4))
    _add_blocks(writer, random, 1)
    _add_last_norm(writer)
    for layer, rows in ((0, 4 * _WIDTH), (2, WIDTH)):
        writer.add_tensor(f"mm.{layer}.weight", random(rows, 4 * _WIDTH))
        writer.add_tensor(f"mm.{layer}.bias", np.zeros(rows, dtype=np.float32))
    _finish(writer)
    return _write_qwen_text(directory / "qwen.gguf"), path


def _add_last_norm(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("v.post_ln.weight", np.ones(_WIDTH, dtype=np.float32))
    writer.add_tensor("v.post_ln.bias", np.zeros(_WIDTH, dtype=np.float32))


def _write_qwen_text(path: Path) -> Path:
    writer = _writer(path, "qwen2vl", 2048, ["\u2581"])
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_sections([2, 3, 3, 0])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_chat_template(CHAT_TEMPLATE)
    random = _random(3)
    ones = np.ones(WIDTH, dtype=np.float32)
    writer.add_tensor("token_embd.weight", random(260, WIDTH))
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", _of_ascii(random))
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{name}{norm}.weight", ones)
        for matrix, rows in (("attn_q", HEADS * HEAD_SIZE), ("attn_k", HEAD_SIZE), ("attn_v", HEAD_SIZE)):
            writer.add_tensor(f"{name}{matrix}.bias", np.zeros(rows, dtype=np.float32))
        _add_layer(writer, random, name)
    _finish(writer)
    return path


def write_llava(directory: Path) -> tuple[Path, Path]:
    """The random Llama and its projector: any picture is `IMAGE_TOKENS`, each of which sees those before it."""
    return write_llama(directory / "llava.gguf", 2048), write_projector(directory / "mmproj-llava.gguf")


def _chunks(width: int, height: int, data: bytes) -> bytes:
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def png(red: int, green: int, blue: int) -> bytes:
    """A picture of one colour, 8 pixels square."""
    row = b"\0" + bytes((red, green, blue)) * 8  # the byte before says that the row is not filtered
    return _chunks(8, 8, row * 8)


def noise(width: int, height: int, seed: int = 0) -> bytes:
    """A picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, 3 * width), dtype=np.uint8)
    return _chunks(width, height, b"".join(b"\0" + row.tobytes() for row in pixels))


def bomb(width: int, height: int, unpacked: int) -> bytes:
    """A PNG that claims a size, and unpacks to `unpacked` bytes."""
    return _chunks(width, height, bytes(unpacked))


def bmp(red: int, green: int, blue: int) -> bytes:
    """The same as a BMP: a header of 40 bytes, and rows of 24 bits a pixel, blue first."""
    rows = bytes((blue, green, red)) * 64
    header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 24, 0, len(rows), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54) + header + rows


RED, BLUE = png(220, 30, 30), png(20, 40, 230)
