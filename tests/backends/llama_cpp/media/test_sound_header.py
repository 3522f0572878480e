# SPDX-License-Identifier: Apache-2.0
"""Headers of sounds: unsupported sounds are refused before decoding, and supported ones are accepted."""

from __future__ import annotations

import contextlib
import io
import struct
import wave

import numpy as np
import pytest

from inference_bridge.backends.llama_cpp.media import sound_header
from inference_bridge.backends.llama_cpp.media.sound_header import MAX_MP3_BYTES, MAX_SECONDS, check

from ....parts.models.tiny_audio import HIGH, LOW, MP3, tone, wav


def made(form: int, channels: int, rate: int, bits: int, data: bytes, *, block: int = 0, more: bytes = b"") -> bytes:
    """A WAV whose header says so; `more` is what its format is extended by."""
    block = block or channels * bits // 8
    head = struct.pack("<HHIIHH", form, channels, rate, rate * block, block, bits) + more
    chunks = b"fmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def written(**parameters: int) -> bytes:
    """As Python's own writer has it."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(parameters.get("channels", 1))
        writer.setsampwidth(parameters.get("width", 2))
        writer.setframerate(parameters.get("rate", 16_000))
        writer.writeframes(bytes(4800))
    return file.getvalue()


EXTENDED = struct.pack("<HHIH", 22, 16, 4, 1) + b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
ID3 = b"ID3\x04\0\0\0\0\x01\x05" + bytes(133)


def xing(frames: int, mark: bytes = b"Xing", *, side: int = 32, check: bytes = b"") -> bytes:
    """Return the first frame of an MP3 that claims `frames` frames."""
    head = (b"\xff\xfa" if check else b"\xff\xfb") + (b"\x90\x00" if side == 32 else b"\x90\xc0") + check
    return (head + bytes(side) + mark + struct.pack(">II", 1, frames)).ljust(417, b"\0")


HEARD = {
    "tones": LOW,
    "another rate": wav(np.zeros(100), 44_100),
    "stereo": written(channels=2),
    "8 bits": written(width=1),
    "24 bits": written(width=3),
    "floating point": made(3, 1, 16_000, 32, bytes(400)),
    "A-law": made(6, 1, 8_000, 8, bytes(400)),
    "mu-law": made(7, 1, 8_000, 8, bytes(400)),
    "extensible": made(0xFFFE, 2, 48_000, 16, bytes(400), more=EXTENDED),
    "a chunk before": LOW[:12] + b"LIST\x03\0\0\0abc\0" + LOW[12:],
    "the longest": made(1, 1, 4_000, 8, bytes(4_000 * MAX_SECONDS)),
    "MP3": MP3,
    "tagged MP3": ID3 + MP3,
    "MP3 with two tags": ID3 + ID3 + MP3,
    "MP3 with a tag's end": ID3[:5] + b"\x10" + ID3[6:] + bytes(10) + MP3,
    "MP3 that says how long it is": xing(40) + MP3,
    "MP3 of half an hour": xing(42 * MAX_SECONDS, b"Info") + MP3,
    "MP3 about an Info": ID3[:20] + b"Info\0\0\0\1\xff\xff\xff\xff" + ID3[32:] + MP3,
    "MPEG 2.5": b"\xff\xe3\x18\xc4" + bytes(100),
}

REFUSED = {
    "nothing": (b"", "not a WAV or MP3"),
    "a text": (b"a text, of some length", "not a WAV or MP3"),
    "WebP": (b"RIFF\x24\0\0\0WEBPVP8 " + bytes(30), "not a WAV or MP3"),
    "FLAC": (b"fLaC\0\0\0\x22" + bytes(50), "not a WAV or MP3"),
    "tagged FLAC": (ID3 + b"fLaC\0\0\0\x22" + bytes(50), "not a WAV or MP3"),
    "a tag alone": (ID3, "not a WAV or MP3"),
    "half a tag": (ID3[:20], "not a WAV or MP3"),
    "layer II": (b"\xff\xfd\x90\x00" + bytes(413), "not a WAV or MP3"),
    "free format": (b"\xff\xfb\x00\x00" + bytes(413), "not a WAV or MP3"),
    "no rate": (b"\xff\xfb\x9c\x00" + bytes(413), "not a WAV or MP3"),
    "no version": (b"\xff\xeb\x90\x00" + bytes(413), "not a WAV or MP3"),
    "a large MP3": (MP3 + bytes(MAX_MP3_BYTES), "more than 16,777,216: cut it into parts"),
    "an MP3 of a year": (xing(1 << 30) + MP3, "it claims 1,073,741,824 frames"),
    "a mono MP3 of a year": (xing(1 << 30, b"Info", side=17) + MP3, "it claims 1,073,741,824 frames"),
    "an MP3 with a checksum, of a year": (xing(1 << 30, check=b"ab") + MP3, "it claims 1,073,741,824 frames"),
    "an MP3 whose second frame claims it": (MP3[:417] + xing(1 << 30) + MP3, "it claims 1,073,741,824 frames"),
    "a WAV without samples": (wav(np.zeros(0)), "it is empty"),
    "a WAV cut short": (HIGH[:-1], "it ends at byte 16,043 of 16,044"),
    "a WAV that claims more": (LOW[:40] + b"\xff\xff\xff\xff" + LOW[44:], "of 4,294,967,339"),
    "a WAV without a format": (LOW[:12] + LOW[36:], "a damaged WAV"),
    "a WAV without data": (LOW[:36], "a damaged WAV"),
    "half a format": (LOW[:16] + b"\x08\0\0\0" + LOW[20:28] + LOW[36:], "a damaged WAV"),
    "ADPCM": (made(2, 1, 16_000, 4, bytes(400), block=256), "of a kind that is not read"),
    "ADPCM, extensible": (made(0xFFFE, 1, 16_000, 16, bytes(400), more=EXTENDED[:8] + b"\2\0"), "not read"),
    "12 bits": (made(1, 1, 16_000, 12, bytes(400)), "of a kind that is not read"),
    "a wrong block": (made(1, 2, 16_000, 16, bytes(400), block=2), "of a kind that is not read"),
    "no channel": (made(1, 0, 16_000, 16, bytes(400), block=2), "of a kind that is not read"),
    "9 channels": (made(1, 9, 16_000, 16, bytes(400)), "of a kind that is not read"),
    "a sample a second": (made(1, 1, 1, 8, bytes(400)), "it has 1 samples a second"),
    "half an hour and a second": (made(1, 1, 4_000, 8, bytes(4_000 * (MAX_SECONDS + 1))), "lasts 1,801 seconds"),
    "two formats": (made(1, 1, 1, 8, bytes(4))[:36] + LOW[12:], "it has 1 samples a second"),
}


@pytest.mark.parametrize("name", HEARD)
def test_supported_sounds_are_accepted(name: str) -> None:
    check(HEARD[name])


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_sounds_are_refused(name: str) -> None:
    data, told = REFUSED[name]
    with pytest.raises(ValueError, match=told):
        check(data)


@pytest.mark.parametrize("name", ["tones", "stereo", "extensible", "tagged MP3"])
def test_a_truncated_sound_is_refused_or_accepted_without_other_errors(name: str) -> None:
    """Of a WAV none is heard; of an MP3, which has no end, those that have a frame's header."""
    sound = HEARD[name][:500]
    heard = 0
    for end in range(len(sound)):
        with contextlib.suppress(ValueError):
            check(sound[:end])
            heard += 1
    assert heard == (len(sound) - len(ID3) - 4 if name == "tagged MP3" else 0)


def test_the_duration_of_a_sound() -> None:
    assert sound_header._wav_seconds(tone(220, 1.5)) == 1.5
    assert sound_header._wav_seconds(made(0xFFFE, 2, 48_000, 16, bytes(192_000), more=EXTENDED)) == 1
