"""Captures on every front-end: link type 302, request and reply, resets, flushed per packet (mm-protocol 6)."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import dpkt
import pytest

from cvars.formats.pcap import CaptureWriter, PacketType, read_capture
from cvars.mm.service import VariableService
from cvars.trace import CallServed
from cvars.variables.limits import DEFAULT_LIMITS
from cvars.variables.profile import SPEC
from svsm_bridge.abi import PAGE, Outcome
from svsm_bridge.service import Service
from svsm_bridge.transports.client import GuestClient
from svsm_bridge.transports.inproc import InProcessGuest
from svsm_bridge.transports.registers import Command, Register, RegisterDevice
from svsm_bridge.transports.socket import SocketServer, listen
from svsm_bridge.transports.tdx import TdxFrontEnd
from tests.bridge.support import (
    BUFFER,
    END_OF_DXE,
    VARIABLES,
    WRITE,
    Box,
    Notebook,
    mm,
    note,
)
from tests.bridge.test_attestation import attest_box
from tests.bridge.test_tdx import L2

ROOT = Path(__file__).resolve().parents[2]
GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")


def variables():
    return VariableService({}, profile=SPEC, limits=DEFAULT_LIMITS, commit=lambda _: None, trace=lambda _: None)


def access(function, name, data, attributes=7):
    """GetVariable or SetVariable."""
    encoded = (name + "\0").encode("utf-16-le")
    body = struct.pack("<QQ", function, 0) + GLOBAL + struct.pack("<QQI", len(data), len(encoded), attributes)
    return mm(VARIABLES, body + encoded + data)


def checked_by_dpkt(raw):
    """Parse with an independent reader; the packets as (type word, message), framing checked."""
    reader = dpkt.pcap.Reader(io.BytesIO(raw))
    assert reader.datalink() == 302
    packets = []
    for _, data in reader:
        (kind,) = struct.unpack_from("<I", data)
        message = data[4:]
        assert kind in (1, 2, 3)
        if kind == 1:
            assert message == b""
        else:
            length = struct.unpack_from("<Q", message, 16)[0]
            assert len(message) == 24 + length
        if kind == 3:
            assert packets[-1][0] == 2
            assert packets[-1][1][:24] == message[:24]
        packets.append((kind, message))
    return packets


def test_the_framing_is_that_of_qemu_s_capture(vectors):
    """Both files by the same independent reader: type words, alternation, lengths of every packet."""
    theirs = checked_by_dpkt((vectors / "mm" / "sample.pcap").read_bytes())
    out = io.BytesIO()
    guest = InProcessGuest(Service(variables(), capture=CaptureWriter(out, time.time)))
    for kind, message in theirs[1:]:
        if kind == 1:
            guest.reset()
        elif kind == 2:
            guest.mm_request(message)
    guest.close()
    ours = checked_by_dpkt(out.getvalue())
    assert [(kind, len(message)) for kind, message in ours] == [(kind, len(message)) for kind, message in theirs]
    assert [m for kind, m in ours if kind == 2] == [m for kind, m in theirs if kind == 2]
    assert out.getvalue()[:16] == (vectors / "mm" / "sample.pcap").read_bytes()[:16]


def test_every_front_end_captures_the_same():
    """SNP call, TDX service call, DMA, PIO: the same requests give the same packets."""
    corpus = [note(WRITE, b"k", b"value"), note(1, b"k", bytes(9)), mm(END_OF_DXE, b"\0")]
    captures = {}
    for front_end in ("snp", "tdx", "dma", "pio"):
        out = io.BytesIO()
        box = attest_box()
        box.service.capture = CaptureWriter(out, lambda: 1.5)
        td = L2(box)
        device = RegisterDevice(box.machine)
        device.write(Register.BUFFER_SIZE, 4, 65536)
        device.write(Register.DMA_BUFFER_ADDR_LO, 4, BUFFER)
        box.machine.platform_reset()
        for message in corpus:
            if front_end == "snp":
                box.mm(message)
            elif front_end == "tdx":
                td.mm(message)
            elif front_end == "dma":
                box.poke(BUFFER, message)
                device.write(Register.CMD_STS, 2, Command.DMA_MM)
            else:
                device.write(Register.CMD_STS, 2, Command.PIO_ZERO_OFFSET)
                for byte in message:
                    device.write(Register.PIO_BUFFER_TRANSFER, 1, byte)
                device.write(Register.CMD_STS, 2, Command.PIO_MM)
        captures[front_end] = out.getvalue()
    assert len(set(captures.values())) == 1
    assert [kind for kind, _ in checked_by_dpkt(captures["snp"])] == [1, 2, 3, 2, 3, 2, 3]
    assert isinstance(TdxFrontEnd(Box().machine), TdxFrontEnd)


@pytest.mark.rule("P38")
def test_P38_redaction():
    out = io.BytesIO()
    guest = InProcessGuest(Service(variables(), capture=CaptureWriter(out, time.time, redact=True)))
    guest.mm_request(access(3, "Secret", b"a very secret value"))
    guest.mm_request(access(1, "Secret", bytes(32)))
    guest.close()
    assert b"very secret" not in out.getvalue()
    assert [kind for kind, _ in checked_by_dpkt(out.getvalue())] == [1, 2, 3, 2, 3]


def test_a_capture_that_cannot_be_written_ends_and_the_guest_goes_on(caplog):
    class Full:
        def reset(self):
            pass

        def request(self, message):
            raise OSError(28, "No space left on device")

        reply = request

    box = Box()
    box.service.capture = Full()
    assert box.mm(note(WRITE, b"k", b"v"))[0] == 0
    assert box.mm(note(WRITE, b"k", b"w"))[0] == 0
    assert caplog.text.count("capture ended") == 1


SERVER = """
import sys, time
from pathlib import Path
from cvars.formats.pcap import CaptureWriter
from svsm_bridge.transports.socket import SocketServer, listen
from tests.bridge.test_capture import variables
server = SocketServer(listen(Path(sys.argv[1]) / "run" / "s"), variables(),
                      capture=CaptureWriter(open(sys.argv[2], "wb"), time.time))
print("ready", flush=True)
server.serve_forever()
"""


def test_a_capture_cut_by_kill_9_reads_up_to_its_last_packet_and_replays(tmp_path):
    capture = tmp_path / "guest.pcap"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path), str(capture)],
        cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert server.stdout.readline() == b"ready\n"
        guest = GuestClient.start(tmp_path / "run" / "s")
        sent = [access(3, f"Boot{n:04X}", bytes([n] * 40)) for n in range(20)]
        answers = [guest.mm_request(message) for message in sent]
    finally:
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        server.stdout.close()
    raw = capture.read_bytes()
    whole = read_capture(raw)
    assert whole.skipped == ()
    assert [p.data for p in whole.packets if p.type == PacketType.REQUEST] == sent
    assert [p.data for p in whole.packets if p.type == PacketType.REPLY] == answers
    for cut in (1, 7, 60, 150):
        part = read_capture(raw[:-cut])
        assert len(part.skipped) == 1
        replay = InProcessGuest(variables())
        previous = None
        for packet in part.packets:
            if packet.type == PacketType.REQUEST:
                previous = replay.mm_request(packet.data)
            elif packet.type == PacketType.REPLY:
                assert previous == packet.data
        replay.close()
    guest.close()


def test_a_call_trace_has_register_files_and_no_memory(serve):
    records = []
    server = serve(Notebook(), on_call=records.append)
    client = GuestClient.start(server.path)
    client.mm_request(note(WRITE, b"k", b"secret value"))
    client.close()
    (record,) = records
    assert (record.vcpu, record.vmpl, record.outcome) == (0, 2, Outcome.SERVED)
    assert record.before.rax == 4 << 32 | 1
    assert record.after.rax == 0
    line = json.dumps(asdict(record))
    assert "secret" not in line
    assert record.duration_ns > 0
    event = CallServed(**record.members()).as_json()
    assert (event["kind"], event["protocol"], event["call"], event["result"]) == ("call.served", 4, 1, 0)
    assert event["registers_in"][:16] == "0000000400000001"
    assert len(event["registers_out"]) == 18 * 16


def test_a_server_with_a_capture_sink(tmp_path):
    out = io.BytesIO()
    server = SocketServer(listen(tmp_path / "run" / "s"), Notebook(), capture=CaptureWriter(out, time.time))
    thread = server.start()
    for _ in range(2):
        client = GuestClient.start(tmp_path / "run" / "s")
        client.mm_request(note(WRITE, b"k", bytes(PAGE)))
        client.reset()
        client.close()
        assert server.wait_closed()
    server.stop()
    thread.join()
    assert [kind for kind, _ in checked_by_dpkt(out.getvalue())] == [1, 2, 3, 1] * 2
