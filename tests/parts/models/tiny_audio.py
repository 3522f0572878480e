# SPDX-License-Identifier: Apache-2.0
"""Random projectors of a few hundred kilobytes, with which the random models of `tiny_gguf` hear; and sounds."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import gguf
import numpy as np

from .tiny_gguf import WIDTH, _finish, _random
from .tiny_vision import _add_eyes, _vision

SECONDS = 30
"""The length to which a sound is padded with silence; a longer sound is cut into several."""
STACK = 10
SOUND_TOKENS = SECONDS * 50 // STACK
"""Whisper makes fifty vectors a second, of which `STACK` together make a token."""

_WIDTH, _FEED_FORWARD, _MELS = 32, 48, 80


def write_ears(path: Path, stack: int = STACK) -> Path:
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_clip_projector_type("ultravox")
    _add_ears(writer, stack)
    _finish(writer)
    return path


def write_senses(path: Path) -> Path:
    """For both images and sounds: the tensors of `write_projector` and of `write_ears`."""
    writer = _vision(path, "", 8, 2)
    writer.add_clip_vision_projector_type("mlp")
    writer.add_clip_audio_projector_type("ultravox")
    _add_eyes(writer, _random(2), WIDTH)
    _add_ears(writer)
    _finish(writer)
    return path


def _add_ears(writer: gguf.GGUFWriter, stack: int = STACK) -> None:
    """Ultravox's, in small: a Whisper's encoder, and a perceptron into the width of the text model.

    The tensors are those that llama.cpp's tools/mtmd/clip.cpp asks for.
    """
    writer.add_clip_has_audio_encoder(True)
    writer.add_audio_projection_dim(WIDTH)
    writer.add_audio_embedding_length(_WIDTH)
    writer.add_audio_feed_forward_length(_FEED_FORWARD)
    writer.add_audio_block_count(1)
    writer.add_audio_head_count(2)
    writer.add_audio_attention_layernorm_eps(1e-5)
    writer.add_audio_num_mel_bins(_MELS)
    writer.add_audio_stack_factor(stack)
    random = _random(4)
    for number, width in ((1, _MELS), (2, _WIDTH)):
        writer.add_tensor(f"a.conv1d.{number}.weight", random(_WIDTH, width, 3).astype(np.float16))
        writer.add_tensor(f"a.conv1d.{number}.bias", np.zeros((_WIDTH, 1), dtype=np.float32))
    writer.add_tensor("a.position_embd.weight", random(SECONDS * 50, _WIDTH))
    ones, zeros = np.ones(_WIDTH, dtype=np.float32), np.zeros(_WIDTH, dtype=np.float32)
    for norm in ("a.blk.0.ln1", "a.blk.0.ln2", "a.post_ln"):
        writer.add_tensor(f"{norm}.weight", ones)
        writer.add_tensor(f"{norm}.bias", zeros)
    for matrix in ("q", "k", "v", "out"):
        writer.add_tensor(f"a.blk.0.attn_{matrix}.weight", random(_WIDTH, _WIDTH))
        if matrix != "k":
            writer.add_tensor(f"a.blk.0.attn_{matrix}.bias", zeros)
    writer.add_tensor("a.blk.0.ffn_up.weight", random(_FEED_FORWARD, _WIDTH))
    writer.add_tensor("a.blk.0.ffn_up.bias", np.zeros(_FEED_FORWARD, dtype=np.float32))
    writer.add_tensor("a.blk.0.ffn_down.weight", random(_WIDTH, _FEED_FORWARD))
    writer.add_tensor("a.blk.0.ffn_down.bias", zeros)
    writer.add_tensor("mm.a.norm_pre.weight", np.ones(stack * _WIDTH, dtype=np.float32))
    writer.add_tensor("mm.a.mlp.1.weight", random(2 * WIDTH, stack * _WIDTH))
    writer.add_tensor("mm.a.norm_mid.weight", np.ones(WIDTH, dtype=np.float32))
    writer.add_tensor("mm.a.mlp.2.weight", random(WIDTH, WIDTH))


def wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    """`samples` between -1 and 1, in 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


def tone(frequency: float, seconds: float = 0.5) -> bytes:
    """A sound of one frequency, in Hz."""
    return wav(0.5 * np.sin(np.arange(int(16_000 * seconds)) * (2 * np.pi * frequency / 16_000)))


LOW, HIGH = tone(220), tone(1760)

MP3 = (b"\xff\xfb\x90\x00" + bytes(413)) * 40
"""A second of silence: frames of MPEG 1, layer III, at 128 kbit/s and 44.1 kHz."""
