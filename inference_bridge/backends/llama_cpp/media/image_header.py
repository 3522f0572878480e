# SPDX-License-Identifier: Apache-2.0
"""Checks of an image file before it is decoded: its format, its width and height, and its uncompressed size.

A file of a few hundred kilobytes can unpack to gigabytes, and the library that decodes it has no limit.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

MAX_PIXELS = 1 << 25
"""33 million, as in 8192 x 4096: 100 MB when decoded, and several times that while it is decoded."""

_PNG = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Channels of a pixel, by the colour type of a PNG."""

_STEP = 1 << 14
"""Compressed bytes that are unpacked in one call. They become at most a thousand times as many."""


def check(data: bytes) -> None:
    """Check that a file is an image that can be decoded.

    Args:
        data: The content of the file.

    Raises:
        ValueError: It is not a PNG, JPEG, GIF or BMP file, or the image is too large to decode.
    """
    claimed = size(data)
    if claimed is None:
        raise ValueError("it is not a PNG, JPEG, GIF or BMP file, or is cut short")
    width, height = claimed
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than {MAX_PIXELS:,} in total: scale it down")
    if data.startswith(_PNG):
        _check_unpacked(data, width, height)


def size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height that the header states. None: the format is unknown, or the header is incomplete."""
    if data.startswith(_PNG) and data[12:16] == b"IHDR" and len(data) > 28:
        return _big(data[16:20]), _big(data[20:24])
    if data.startswith((b"GIF87a", b"GIF89a")) and len(data) > 10:
        return _little(data[6:8]), _little(data[8:10])
    if data.startswith(b"BM") and len(data) > 26:
        if _little(data[14:18]) == 12:
            return _little(data[18:20]), _little(data[20:22])
        # A negative height means that the rows are stored from top to bottom.
        width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
        return abs(width), abs(height)
    return _jpeg_size(data) if data.startswith(b"\xff\xd8\xff") else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return the size from the first frame header, which follows segments of any length."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0:
        while data[at : at + 1] == b"\xff":
            at += 1
        segment = data[at : at + 8]
        if len(segment) < 8:
            return None
        if 0xC0 <= segment[0] <= 0xC2:  # two bytes for the length and one for the precision precede the size
            return _big(segment[6:8]), _big(segment[4:6])
        at += 1 + _big(segment[1:3])
    return None


def _check_unpacked(data: bytes, width: int, height: int) -> None:
    """Check that the rows of a PNG unpack to no more bytes than its width and height need. Raises ValueError.

    The unpacked bytes are not kept.
    """
    bits = data[24] * _CHANNELS.get(data[25], 4)
    # Two more bytes for each row: one to round up to whole bytes, one for the filter. An interlaced image has up to
    # twice as many rows.
    room = width * height * bits // 8 + 4 * height + 64
    stream = zlib.decompressobj()
    try:
        for kind, part in _chunks(data):
            if kind == b"CgBI":
                raise ValueError("it is a PNG in Apple's own format (CgBI): save it as a standard PNG")
            for at in range(0, len(part), _STEP) if kind == b"IDAT" else ():
                room -= len(stream.decompress(part[at : at + _STEP]))
                if room < 0:
                    raise ValueError(f"it unpacks to more than its {width} x {height} pixels")
    except zlib.error as error:
        raise ValueError(f"it is damaged: {error}") from None


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type and the content of each chunk of a PNG."""
    at = len(_PNG)
    while at + 8 <= len(data):
        length = _big(data[at : at + 4])
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
