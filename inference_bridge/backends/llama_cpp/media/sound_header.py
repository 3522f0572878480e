# SPDX-License-Identifier: Apache-2.0
"""Checks of a sound file before it is decoded: its format and its duration.

A file of a few kilobytes can state a duration of days, and the library that decodes it allocates memory for that.
WAV: http://soundfile.sapp.org/doc/WaveFormat and Microsoft's WAVEFORMATEXTENSIBLE; MP3: ISO/IEC 11172-3, 2.4.1.3.
"""

from __future__ import annotations

MAX_SECONDS = 1800
"""Half an hour: 115 MB when decoded at 16 kHz."""

MAX_MP3_BYTES = 1 << 24
"""16 MiB, 17 minutes at 128 kbit/s. At the lowest bit rate of MP3 it lasts ten times as long: 1 GB when decoded."""
MAX_MP3_FRAMES = 42 * MAX_SECONDS
"""A frame has 1,152 samples at 48 kHz, or 576 at 24 kHz."""

_FORMATS = {1: (8, 16, 24, 32), 3: (32, 64), 6: (8,), 7: (8,)}
"""Bits that a sample may have, by the format of a WAV: integers, floating point, A-law and mu-law."""
_EXTENSIBLE = 0xFFFE
_RATES = range(4_000, 192_001)


def check(data: bytes) -> None:
    """Check that a file is a sound that can be decoded.

    Args:
        data: The content of the file.

    Raises:
        ValueError: It is not a WAV or MP3 file, it is damaged or empty, or the sound is too long to decode.
    """
    if data.startswith(b"RIFF") and data[8:12] == b"WAVE":
        seconds = _wav_seconds(data)
        if seconds > MAX_SECONDS:
            raise ValueError(f"it lasts {seconds:,.0f} seconds, more than {MAX_SECONDS:,}: cut it into parts")
        if not seconds:
            raise ValueError("it is empty")
    elif not _is_mp3(data):
        raise ValueError("it is not a WAV or MP3 file, or is cut short")
    elif len(data) > MAX_MP3_BYTES:
        raise ValueError(f"it has {len(data):,} bytes, more than {MAX_MP3_BYTES:,}: cut it into parts")
    elif (frames := _claimed_frames(data)) > MAX_MP3_FRAMES:
        raise ValueError(f"it claims {frames:,} frames, more than {MAX_MP3_FRAMES:,}: cut it into parts")


def _wav_seconds(data: bytes) -> float:
    """Return the duration of a WAV in seconds. Raises ValueError for one that is damaged or can't be decoded."""
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
                raise ValueError("it is a WAV of a kind that is not read: convert it to 16-bit PCM")
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
    """Return whether the file begins with a frame of layer III, after ID3v2 tags (https://id3.org/id3v2.4.0) if any."""
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
    """Return the number of frames that a Xing header states, which the decoder trusts. 0: there is no such header.

    A Xing header follows the header and the side information of a frame. All frames are searched, because the decoder
    may take another one for the first than this module.
    """
    claimed = 0
    for mark in (b"Xing", b"Info"):
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            # The side information has 32, 17 or 9 bytes. A checksum of 2 bytes may precede it.
            starts = (at - 4 - size - check for size in (32, 17, 9) for check in (0, 2))
            follows = any(start >= 0 and data[start] == 0xFF and data[start + 1] >= 0xE0 for start in starts)
            if follows and data[at + 7 : at + 8] and data[at + 7] & 1:
                claimed = max(claimed, int.from_bytes(data[at + 8 : at + 12], "big"))
    return claimed


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
