# SPDX-License-Identifier: Apache-2.0
"""What a picture claims to be, read before anything decodes it: its format, its size, and what it unpacks to.

A few hundred kilobytes can unpack to gigabytes, and the library that decodes them has no bound of its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

MAX_PIXELS = 1 << 25
"""33 million, as in 8192 x 4096: 100 MB once decoded, and several times that on the way."""

_PNG = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By the colour type of PNG."""

_STEP = 1 << 14
"""Bytes unpacked at once: they become at most a thousand times as many."""


def check(data: bytes) -> None:
    """Refuse what is no PNG, JPEG, GIF or BMP, or is too large to decode. Raises ValueError."""
    claimed = size(data)
    if claimed is None:
        raise ValueError("it is no PNG, JPEG, GIF or BMP, or is cut short")
    width, height = claimed
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than {MAX_PIXELS:,} in all: scale it down")
    if data.startswith(_PNG):
        _check_unpacked(data, width, height)


def size(data: bytes) -> tuple[int, int] | None:
    """Width and height, as the header has them."""
    if data.startswith(_PNG) and data[12:16] == b"IHDR" and len(data) > 28:
        return _big(data[16:20]), _big(data[20:24])
    if data.startswith((b"GIF87a", b"GIF89a")) and len(data) > 10:
        return _little(data[6:8]), _little(data[8:10])
    if data.startswith(b"BM") and len(data) > 26:
        if _little(data[14:18]) == 12:
            return _little(data[18:20]), _little(data[20:22])
        # A negative height says that the rows go from top to bottom.
        width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
        return abs(width), abs(height)
    return _jpeg_size(data) if data.startswith(b"\xff\xd8\xff") else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """From the first start of a frame, behind segments of any length."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0:
        while data[at : at + 1] == b"\xff":
            at += 1
        segment = data[at : at + 8]
        if len(segment) < 8:
            return None
        if 0xC0 <= segment[0] <= 0xC2:  # its length and a byte for the precision come first
            return _big(segment[6:8]), _big(segment[4:6])
        at += 1 + _big(segment[1:3])
    return None


def _check_unpacked(data: bytes, width: int, height: int) -> None:
    """Refuse a PNG whose rows unpack to more than its size has room for. Nothing of them is kept."""
    bits = data[24] * _CHANNELS.get(data[25], 4)
    # Two bytes more a row, for what is not whole and the filter, and twice as many rows where they are interlaced.
    room = width * height * bits // 8 + 4 * height + 64
    stream = zlib.decompressobj()
    try:
        for kind, part in _chunks(data):
            if kind == b"CgBI":
                raise ValueError("it is a PNG of Apple's own kind: save it as a PNG")
            for at in range(0, len(part), _STEP) if kind == b"IDAT" else ():
                room -= len(stream.decompress(part[at : at + _STEP]))
                if room < 0:
                    raise ValueError(f"it unpacks to more than its {width} x {height} pixels")
    except zlib.error as error:
        raise ValueError(f"it is damaged: {error}") from None


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """A PNG's: the kind of each, and what is in it."""
    at = len(_PNG)
    while at + 8 <= len(data):
        length = _big(data[at : at + 4])
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
