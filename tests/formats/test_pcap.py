"""Captures: what is written reads back, what is cut is named, and anything else is refused."""

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvars.errors import BadInput
from cvars.formats.pcap import CaptureWriter, PacketType, read_capture, redacted

HEAD = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65536, 302)
REQUEST = bytes(range(16)) + struct.pack("<Q", 3) + b"abc"


def record(body, original=None, incl=None):
    size = len(body) if incl is None else incl
    return struct.pack("<IIII", 1, 2, size, len(body) if original is None else original) + body


def test_what_is_written_reads_back():
    out = io.BytesIO()
    writer = CaptureWriter(out, lambda: 1234.5)
    writer.reset()
    writer.request(REQUEST)
    writer.reply(REQUEST[:-1] + b"!")
    capture = read_capture(out.getvalue())
    assert [p.type for p in capture.packets] == [PacketType.RESET, PacketType.REQUEST, PacketType.REPLY]
    assert [p.data for p in capture.packets] == [b"", REQUEST, REQUEST[:-1] + b"!"]
    assert capture.packets[0].time == 1234.5
    assert capture.skipped == ()


def test_it_begins_as_the_specification_shows():
    out = io.BytesIO()
    CaptureWriter(out, lambda: 0.0).reset()
    assert out.getvalue()[:12].hex() == "d4c3b2a10200040000000000"
    assert out.getvalue()[20:24].hex() == "2e010000"
    assert out.getvalue()[32:].hex() == "040000000400000001000000"


def test_the_recorded_sample_reads(vectors):
    capture = read_capture((vectors / "mm" / "sample.pcap").read_bytes())
    assert capture.packets[0].type is PacketType.RESET
    assert capture.packets[1].data.hex() == "7a96ce027eddfc4f9ee7810cf0470880010000000000000000"
    assert capture.skipped == ()


def test_P38_a_redacted_capture_holds_no_values():
    out = io.BytesIO()
    writer = CaptureWriter(out, lambda: 0.0, redact=True)
    name = "Secret".encode("utf-16-le") + b"\0\0"
    guid = bytes.fromhex("33d532ede69909429cc02d72cdd998a7")
    for function, write in ((3, writer.request), (1, writer.reply)):
        body = (
            struct.pack("<QQ", function, 0) + bytes(16) + struct.pack("<QQI", 6, len(name), 7) + name + b"hidden"
        )
        write(guid + struct.pack("<Q", len(body)) + body)
    assert b"hidden" not in out.getvalue()
    assert out.getvalue().count(name) == 2
    assert [len(p.data) for p in read_capture(out.getvalue()).packets] == [24 + len(body)] * 2


def test_records_that_are_cut_or_foreign_are_named_and_skipped():
    whole = struct.pack("<I", 2) + REQUEST
    raw = HEAD + record(whole) + record(whole[:9], original=len(whole)) + record(b"\7\0\0\0") + record(b"\1")
    raw += record(struct.pack("<I", 2) + bytes(23)) + record(whole, incl=len(whole) + 5)
    capture = read_capture(raw)
    assert [p.number for p in capture.packets] == [1]
    assert [s.number for s in capture.skipped] == [2, 3, 4, 5, 6]
    assert "snap length" in capture.skipped[0].why


@pytest.mark.parametrize(
    "raw",
    [b"", b"not a pcap at all, but long enough", HEAD[:20] + struct.pack("<I", 1), b"\xa1\xb2\xc3\xd4" + HEAD[4:]],
)
def test_other_files_are_refused(raw):
    with pytest.raises(BadInput):
        read_capture(raw)


@given(st.binary(max_size=300))
def test_any_bytes_behind_a_header_are_packets_or_skipped(raw):
    capture = read_capture(HEAD + raw)
    assert len(capture.packets) + len(capture.skipped) <= len(raw) // 16 + 1


@given(st.binary(max_size=120))
def test_redaction_never_changes_a_size(raw):
    assert len(redacted(raw)) == len(raw)
