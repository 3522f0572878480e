# SPDX-License-Identifier: Apache-2.0
"""What a sound claims to be, read before anything decodes it: its format, and how long it is.

A few kilobytes can claim to last for days, and the library that decodes them makes room for what they claim.
WAV: http://soundfile.sapp.org/doc/WaveFormat and Microsoft's WAVEFORMATEXTENSIBLE; MP3: ISO/IEC 11172-3, 2.4.1.3.
"""

from __future__ import annotations

MAX_SECONDS = 1800
"""Half an hour: 115 MB once decoded at 16 kHz."""

MAX_MP3_BYTES = 1 << 24
"""16 MiB, 17 minutes at 128 kbit/s. It may last ten times as long, at the least that MP3 has: 1 GB once decoded."""
MAX_MP3_FRAMES = 42 * MAX_SECONDS
"""Of 1,152 samples at 48 kHz, or 576 at 24."""

_FORMATS = {1: (8, 16, 24, 32), 3: (32, 64), 6: (8,), 7: (8,)}
"""The bits a sample may have: whole numbers, floating point, A-law and mu-law."""
_EXTENSIBLE = 0xFFFE
_RATES = range(4_000, 192_001)


def check(data: bytes) -> None:
    """Refuse what is no WAV or MP3, or is too long to decode. Raises ValueError."""
    if data.startswith(b"RIFF") and data[8:12] == b"WAVE":
        seconds = _wav_seconds(data)
        if seconds > MAX_SECONDS:
            raise ValueError(f"it lasts {seconds:,.0f} seconds, more than {MAX_SECONDS:,}: cut it into parts")
        if not seconds:
            raise ValueError("it is empty")
    elif not _is_mp3(data):
        raise ValueError("it is no WAV or MP3, or is cut short")
    elif len(data) > MAX_MP3_BYTES:
        raise ValueError(f"it has {len(data):,} bytes, more than {MAX_MP3_BYTES:,}: cut it into parts")
    elif (frames := _claimed_frames(data)) > MAX_MP3_FRAMES:
        raise ValueError(f"it claims {frames:,} frames, more than {MAX_MP3_FRAMES:,}: cut it into parts")


def _wav_seconds(data: bytes) -> float:
    rate = block = 0
    at = 12
    while at + 8 <= len(data):
        kind, length = data[at : at + 4], _little(data[at + 4 : at + 8])
        part = data[at + 8 : at + 8 + min(length, 40)]
        if kind == b"fmt " and len(part) >= 16 and not block:
            form, channels, rate = (_little(part[:2]), _little(part[2:4]), _little(part[4:8]))
            block, bits = _little(part[12:14]), _little(part[14:16])
            if form == _EXTENSIBLE:
                form = _little(part[24:26])
            if bits not in _FORMATS.get(form, ()) or not 1 <= channels <= 8 or block != channels * bits // 8:
                raise ValueError("it is a WAV of a kind that is not read: convert it to one of 16 bits, PCM")
            if rate not in _RATES:
                raise ValueError(f"it has {rate:,} samples a second, not {_RATES[0]:,} to {_RATES[-1]:,}")
        elif kind == b"data":
            if not block:
                break
            if at + 8 + length > len(data):
                raise ValueError(f"it ends at byte {len(data):,} of {at + 8 + length:,}")
            return length // block / rate
        at += 8 + length + length % 2
    raise ValueError("it is a damaged WAV")


def _is_mp3(data: bytes) -> bool:
    """Whether the header of a frame of layer III comes first, or behind tags of ID3v2 (https://id3.org/id3v2.4.0)."""
    at = 0
    while data[at : at + 3] == b"ID3" and len(data) >= at + 10:
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        at += 10 + size + (10 if data[at + 5] & 0x10 else 0)
    if len(data) < at + 4:
        return False
    version, layer = data[at + 1] >> 3 & 3, data[at + 1] >> 1 & 3
    bit_rate, rate = data[at + 2] >> 4, data[at + 2] >> 2 & 3
    synchronised = data[at] == 0xFF and data[at + 1] >= 0xE0
    return synchronised and version != 1 and layer == 1 and 0 < bit_rate < 15 and rate != 3


def _claimed_frames(data: bytes) -> int:
    """What a Xing header has, behind the header and the side information of any frame: the decoder believes it.

    Any, because a decoder looks for the first frame in its own way.
    """
    claimed = 0
    for mark in (b"Xing", b"Info"):
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            # 32, 17 or 9 bytes of side information, and 2 before it for a checksum
            starts = (at - 4 - size - check for size in (32, 17, 9) for check in (0, 2))
            follows = any(start >= 0 and data[start] == 0xFF and data[start + 1] >= 0xE0 for start in starts)
            if follows and data[at + 7 : at + 8] and data[at + 7] & 1:
                claimed = max(claimed, int.from_bytes(data[at + 8 : at + 12], "big"))
    return claimed


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
