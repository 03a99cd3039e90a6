"""The reader of event streams: any cut, any line end, nothing that was not finished."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelgen.scripts.sse import MAX_EVENT_BYTES, SseError, SseReader

STREAM = (
    b"\xef\xbb\xbf: a comment\ndata: one\n\n"
    b"event: message\r\nid: 7\r\ndata:two\r\ndata:  lines\r\n\r\n"
    b"data: three\r\rretry: 5\n\n\n\ndata\n\ndata: [DONE]\n\ndata: never finished\n"
)
EVENTS = [b"one", b"two\n lines", b"three", b"", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_borders_do_not_matter(cuts: list[int]) -> None:
    reader = SseReader()
    borders = [0, *sorted(cuts), len(STREAM)]
    events = []
    for start, end in zip(borders, borders[1:], strict=False):
        events += reader.feed(STREAM[start:end])
    assert events == EVENTS


def test_byte_by_byte() -> None:
    reader = SseReader()
    assert [event for byte in STREAM for event in reader.feed(bytes([byte]))] == EVENTS


@pytest.mark.parametrize("line_end", [b"", b"\ndata: "])
def test_an_endless_event_is_refused(line_end: bytes) -> None:
    reader = SseReader()
    reader.feed(b"data: ")
    with pytest.raises(SseError, match=str(MAX_EVENT_BYTES)):
        for _ in range(20):
            reader.feed(b"x" * (MAX_EVENT_BYTES // 16) + line_end)
