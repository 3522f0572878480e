# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_bridge.backends.http.transport.sse import EventReader, EventTooLongError


def read(*chunks: bytes, limit: int = 1000) -> list[bytes]:
    reader = EventReader(limit)
    return [data for chunk in chunks for data in reader.feed(chunk)] + reader.finish()


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:a\n\ndata:  b\n\n", [b"a", b" b"]),  # one space after the colon is not data
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b": keepalive 1/2\n\nevent: message\nid: 7\nretry: 1\ndata: a\n\n", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"\n\n\ndata: a\n\n\n\n", [b"a"]),
        (b"data: a\n\ndata: b", [b"a", b"b"]),  # ended only by the end of the stream
        (b'error: {"code": 500}\n\n', [b'{"error": {"code": 500}}']),
        (b"data\n\nnonsense\n\ndata:\n\n", []),
        (b"", []),
    ],
)
def test_the_data_of_events(stream: bytes, expected: list[bytes]) -> None:
    assert read(stream) == expected
    assert read(*(stream[i : i + 1] for i in range(len(stream)))) == expected


LINE_ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
DATA = st.binary(max_size=20).map(lambda data: data.replace(b"\n", b"").replace(b"\r", b""))


@given(st.lists(st.tuples(st.lists(DATA, min_size=1, max_size=3), LINE_ENDS), max_size=5), st.data())
def test_events_do_not_depend_on_how_the_stream_is_split(
    events: list[tuple[list[bytes], bytes]], data: st.DataObject
) -> None:
    stream = b"".join(b"".join(b"data: " + line + end for line in lines) + end for lines, end in events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(*pieces) == list(filter(None, (b"\n".join(lines) for lines, _ in events)))


def test_the_length_of_a_line_is_limited() -> None:
    reader = EventReader(limit=100)
    for _ in range(10):
        reader.feed(b"data: aaaa")
    with pytest.raises(EventTooLongError):
        reader.feed(b"a")


def test_the_length_of_an_event_is_limited() -> None:
    reader = EventReader(limit=100)
    for _ in range(25):
        reader.feed(b"data: aaaa\n")
    with pytest.raises(EventTooLongError):
        reader.feed(b"data: aaaa\n")
