# SPDX-License-Identifier: Apache-2.0
"""A random projector of a hundred kilobytes, with which the random Llama of `tiny_gguf` sees; and pictures for it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import gguf
import numpy as np

from .tiny_gguf import WIDTH, _finish, _random

SIDE, PATCH = 32, 8
IMAGE_TOKENS = (SIDE // PATCH) ** 2
"""What any picture comes to: it is scaled to a square of `SIDE` pixels, and each square of `PATCH` makes one."""

_WIDTH, _FEED_FORWARD = 32, 48


def write_projector(path: Path, seed: int = 2, width: int = WIDTH) -> Path:
    """LLaVA 1.5's, in small: a CLIP's vision transformer, and a perceptron into the `width` of the text model.

    It reads the layer before the last, so that one of the two is used. The tensors are those that llama.cpp's
    tools/mtmd/clip.cpp asks for.
    """
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_projection_dim(width)
    writer.add_vision_image_size(SIDE)
    writer.add_vision_patch_size(PATCH)
    writer.add_vision_embedding_length(_WIDTH)
    writer.add_vision_feed_forward_length(_FEED_FORWARD)
    writer.add_vision_block_count(2)
    writer.add_vision_head_count(2)
    writer.add_vision_attention_layernorm_eps(1e-5)
    writer.add_vision_image_mean([0.5, 0.5, 0.5])
    writer.add_vision_image_std([0.5, 0.5, 0.5])
    random = _random(seed)
    ones, zeros = np.ones(_WIDTH, dtype=np.float32), np.zeros(_WIDTH, dtype=np.float32)
    writer.add_tensor("v.patch_embd.weight", random(_WIDTH, 3, PATCH, PATCH))
    writer.add_tensor("v.position_embd.weight", random(IMAGE_TOKENS, _WIDTH))
    for layer in range(2):
        name = f"v.blk.{layer}."
        for norm in ("ln1", "ln2"):
            writer.add_tensor(f"{name}{norm}.weight", ones)
            writer.add_tensor(f"{name}{norm}.bias", zeros)
        for matrix in ("attn_q", "attn_k", "attn_v", "attn_out"):
            writer.add_tensor(f"{name}{matrix}.weight", random(_WIDTH, _WIDTH))
        writer.add_tensor(f"{name}ffn_up.weight", random(_FEED_FORWARD, _WIDTH))
        writer.add_tensor(f"{name}ffn_down.weight", random(_WIDTH, _FEED_FORWARD))
    writer.add_tensor("mm.0.weight", random(width, _WIDTH))
    writer.add_tensor("mm.0.bias", np.zeros(width, dtype=np.float32))
    writer.add_tensor("mm.2.weight", random(width, width))
    writer.add_tensor("mm.2.bias", np.zeros(width, dtype=np.float32))
    _finish(writer)
    return path


def png(red: int, green: int, blue: int) -> bytes:
    """A picture of one colour, 8 pixels square."""
    row = b"\0" + bytes((red, green, blue)) * 8  # the byte before says that the row is not filtered
    header = struct.pack(">2I5B", 8, 8, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(row * 8)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


RED, BLUE = png(220, 30, 30), png(20, 40, 230)
