"""Calls over the socket: one per vCPU, deadlines, peers that die, optional features: B62, B63, S60..S65."""

import os
import struct
import threading
import time

import pytest

from svsm_bridge.abi import PAGE, Outcome, Registers, call_number
from svsm_bridge.errors import GuestMustStop
from svsm_bridge.memory import sealed_memfd
from svsm_bridge.service import Service
from svsm_bridge.transports import tdx, wire
from svsm_bridge.transports.client import GuestClient, ServerGone
from svsm_bridge.transports.connection import Connection
from svsm_bridge.transports.guest import BUFFER_GPA, CA_GPA, RAM_BASE, RAM_BYTES
from svsm_bridge.transports.socket import listen
from svsm_bridge.transports.wire import Code, Feature, Kind
from tests.bridge.support import APPEND, BUSY, READ, SUCCESS, WRITE, Notebook, note, note_reply
from tests.bridge.test_socket import Gate, fds, hello, mem_add, refused, request

# --- calls ---------------------------------------------------------------------------------------------


def test_B63_a_second_call_on_a_busy_vcpu(serve):
    gate = Gate()
    server = serve(gate)
    client = GuestClient.start(server.path)
    other = GuestClient.connect(server.path)
    other.hello(roles=1, guest_vmpl=0)
    client.poke(BUFFER_GPA, note(WRITE, b"k", b"v"))
    client.poke(CA_GPA, b"\1")
    regs = Registers(rax=call_number(4, 1), rcx=BUFFER_GPA, rdx=PAGE)
    tag = client.post(Kind.CALL, client.call_payload(0, regs))
    assert gate.inside.acquire(timeout=10)
    refused(other, Code.IN_FLIGHT, Kind.CALL, client.call_payload(0, regs))
    second = client.post(Kind.CALL, client.call_payload(0, regs))  # pipelined on the same connection
    answered, error = client.take()
    assert (answered, error.code) == (second, Code.IN_FLIGHT)
    gate.go_on.set()
    assert client.take()[0] == tag
    assert client.query_protocol(4)
    client.close()
    other.close()


def test_B63_S61_eight_vcpus_pipelined(serve):
    """Calls of different vCPUs on one connection; replies come in any order and are matched by tag."""
    gate = Gate()
    server = serve(gate)
    client = GuestClient.start(server.path)
    for vcpu in range(1, 8):
        client.vcpu_add(vcpu, ca=CA_GPA + vcpu * PAGE)
    tags = {}
    for vcpu in range(8):
        buffer = BUFFER_GPA + vcpu * PAGE
        client.poke(buffer, note(WRITE, bytes([vcpu]), bytes([vcpu] * 8)))
        client.poke(CA_GPA + vcpu * PAGE, b"\1")
        regs = Registers(rax=call_number(4, 1), rcx=buffer, rdx=PAGE, rbx=vcpu)
        tags[client.post(Kind.CALL, client.call_payload(vcpu, regs))] = vcpu
    assert gate.inside.acquire(timeout=10)
    # one holds the store; the others are told BUSY after their 50 ms, in whatever order
    answers = {}
    for _ in range(7):
        tag, payload = client.take()
        answers[tags[tag]] = wire.call_reply.unpack(payload)
    gate.go_on.set()
    tag, payload = client.take()
    answers[tags[tag]] = wire.call_reply.unpack(payload)
    assert sorted(answers) == list(range(8))
    for vcpu, fields in answers.items():
        assert fields[0] == vcpu
        assert fields[4] == vcpu  # its own RBX
    assert sorted(fields[3] for fields in answers.values()) == [SUCCESS, *[BUSY] * 7]
    assert len(gate.values) == 1
    client.close()


@pytest.mark.rule("S14")
@pytest.mark.parametrize("vmpl", [0, 1, 3, 255])
def test_B63_a_forged_vmpl(guest, vmpl):
    guest.poke(CA_GPA, b"\1")
    payload = guest.call_payload(0, Registers(rax=call_number(0, 6)), vmpl=vmpl)
    refused(guest, Code.ROLE, Kind.CALL, payload)
    assert guest.peek(CA_GPA, 1) == b"\1"


@pytest.mark.parametrize("spot", [5, 6, 7, *range(0xA0, 0xA8)])
def test_reserved_bytes_of_a_call(guest, spot):
    payload = bytearray(guest.call_payload(0, Registers()))
    payload[spot] = 1
    refused(guest, Code.RESERVED, Kind.CALL, bytes(payload))


def test_S62_no_effect_by_the_deadline_is_busy(serve):
    """The report source hangs: BUSY at the deadline with the registers as they came, then the next call."""
    hang = threading.Event()

    class Slow:
        def report(self, report_data):
            hang.wait(10)
            raise OSError("late")

        def certificates(self):
            return b""

    server = serve(Notebook(), reports=Slow(), deadline_s=0.15)
    client = GuestClient.start(server.path)
    operation = BUFFER_GPA
    client.poke(operation, bytes(0x10) + struct.pack("<QH", RAM_BASE + 0x20000, 64) + bytes(0x26))
    client.poke(CA_GPA, b"\1")
    regs = Registers(rax=call_number(1, 0), rcx=operation, rdx=7, r8=8)
    start = time.monotonic()
    reply = client.enter_raw(0, regs)
    assert 0.1 < time.monotonic() - start < 5
    assert reply.regs.rax == BUSY
    assert (reply.regs.rcx, reply.regs.rdx, reply.regs.r8) == (operation, 7, 8)
    assert client.query_protocol(4)  # the vCPU is free, though the server still waits for the report
    hang.set()
    client.close()


def test_S62_a_commit_is_finished_whatever_the_clock_says(serve, monkeypatch):
    told = []
    answer = Connection.answer_busy
    monkeypatch.setattr(Connection, "answer_busy", lambda self, call: told.append(call) or answer(self, call))
    gate = Gate()
    server = serve(gate, deadline_s=0.1)
    client = GuestClient.start(server.path)
    client.wait_s = 10
    threading.Timer(0.4, gate.go_on.set).start()
    assert note_reply(client.mm_request(note(WRITE, b"k", b"v")))[0] == 0
    assert gate.values
    assert len(told) == 1  # asked once, and refused
    client.close()


def test_S63_the_client_dies_during_a_call(serve):
    """The call runs to its end, the commit stands, the reply is dropped, mappings go, the next boot works."""
    gate = Gate()
    server = serve(gate)
    client = GuestClient.start(server.path)
    client.poke(BUFFER_GPA, note(APPEND, b"k", b"v"))
    client.poke(CA_GPA, b"\1")
    client.post(Kind.CALL, client.call_payload(0, Registers(rax=call_number(4, 1), rcx=BUFFER_GPA, rdx=PAGE)))
    assert gate.inside.acquire(timeout=10)
    client.close()
    threading.Timer(0.05, gate.go_on.set).start()
    again = GuestClient.start(server.path)  # waits for the old guest to be gone
    assert note_reply(again.mm_request(note(READ, b"k", b"\0")))[1] == b"v"
    again.close()
    assert server.wait_closed()


def test_S63_the_server_dies_during_a_call(serve):
    gate = Gate()
    server = serve(gate)
    client = GuestClient.start(server.path)
    client.poke(CA_GPA, b"\1")
    client.post(Kind.CALL, client.call_payload(0, Registers(rax=call_number(4, 1), rcx=BUFFER_GPA, rdx=PAGE)))
    client.poke(BUFFER_GPA, note(WRITE, b"k"))
    server.stop()
    with pytest.raises(ServerGone):
        client.take()
    gate.go_on.set()
    client.close()


@pytest.mark.rule("S62")
def test_a_silent_server_is_dead_after_twice_its_deadline(tmp_path):
    listener = listen(tmp_path / "run" / "s")
    client = GuestClient.connect(tmp_path / "run" / "s")
    client.wait_s = 0.05
    with pytest.raises(ServerGone, match="no answer"):
        client.hello()
    client.close()
    listener.close()


BOOT = [
    (request(Kind.HELLO, hello()), False),
    (request(Kind.MEM_ADD, mem_add(gpa=RAM_BASE, size=RAM_BYTES)), True),
    (request(Kind.VCPU_ADD, wire.vcpu_add.pack(0, 0, CA_GPA, 1)), False),
    (request(Kind.PAGE_QUERY, wire.page_query.pack(RAM_BASE)), False),
    (request(Kind.PAGE_STATE, wire.page_state.pack(RAM_BASE + 0x20000, PAGE, 1, 0, 0)), False),
    (
        request(
            Kind.CALL, wire.call.pack(0, 2, bytes(3), 0x403, call_number(4, 1), 0, BUFFER_GPA, PAGE, *[0] * 14, 0)
        ),
        False,
    ),
    (request(Kind.TDVMCALL, wire.tdvmcall.pack(0, 2, *[0] * 16)), False),
    (request(Kind.RESET, wire.reset.pack(1, 0)), False),
]  # fmt: skip


@pytest.mark.rule("S64")
def test_B62_the_client_dies_at_every_byte_of_every_message(serve):
    """Some 600 clients, each cut one byte further than the last: the server serves the next, nothing leaks."""
    notebook = Notebook()
    server = serve(notebook)
    warm = GuestClient.start(server.path)
    warm.close()
    assert server.wait_closed()
    before = fds()
    for index, (message, with_fd) in enumerate(BOOT):
        for cut in range(0, len(message) + 1, 1 if index in (0, 5) else 3):
            ram = sealed_memfd(RAM_BYTES)
            os.pwrite(ram, b"\1", 0)
            os.pwrite(ram, note(APPEND, b"k", b"x"), BUFFER_GPA - RAM_BASE)
            client = GuestClient.connect(server.path)
            for earlier, earlier_fd in BOOT[:index]:
                if earlier_fd:
                    os.pwrite(ram, b"\0", 0)
                client.channel.send_raw(earlier, (ram,) if earlier_fd else ())
                if earlier_fd:
                    client.take()
                    os.pwrite(ram, b"\1", 0)
            if cut:
                client.channel.send_raw(message[:cut], (ram,) if with_fd else ())
            client.close()
            os.close(ram)
    probe = GuestClient.start(server.path)
    assert probe.query_protocol(4)
    status, value = note_reply(probe.mm_request(note(READ, b"k", bytes(400))))
    assert status in (0, 1 << 63 | 14)
    assert set(value) <= {ord("x")}
    probe.close()
    assert server.wait_closed()
    assert fds() == before


def test_11_an_internal_error_does_not_end_the_connection(serve, caplog):
    class Forgetful(Notebook):
        def reset(self):
            if self.resets:
                self.resets = 0
                raise KeyError("value")
            self.resets += 1

    server = serve(Forgetful())
    client = GuestClient.start(server.path)
    refused(client, Code.INTERNAL, Kind.RESET, wire.reset.pack(1, 0))
    assert "value" not in caplog.text
    assert client.query_protocol(4)
    client.close()


def test_a_store_that_fails_at_reset_stops_the_guest(serve):
    class Rotten(Notebook):
        def reset(self):
            self.resets += 1
            if self.resets > 1:
                raise GuestMustStop("gone")

    heard = []
    server = serve(Rotten(), on_fatal=heard.append)
    client = GuestClient.start(server.path)
    with pytest.raises(ServerGone):
        client.reset()
    client.close()
    assert server.wait_closed()
    assert heard


# --- optional features ---------------------------------------------------------------------------------


def test_tdvmcall(guest):
    guest.close()
    path = guest.path
    client = GuestClient.connect(path)
    client.hello(features=Feature.TDX)
    fd = sealed_memfd(RAM_BYTES)
    client.mem_add(fd, RAM_BASE, RAM_BYTES)
    client.vcpu_add(0)
    data = struct.pack("<BBHIQ", 0, 0, 0, 0, 0)
    os.pwrite(fd, tdx.SERVICE_GUID.bytes_le + struct.pack("<II", 40, 0) + data, 0x1000)
    os.pwrite(fd, tdx.SERVICE_GUID.bytes_le + struct.pack("<II", 0x1000, 0xFFFFFFFE), 0x2000)
    regs = [0, 1, 0xFFCC, 3, 4, 5, 6, 7, 8, 9, 0, 0x10005, RAM_BASE + 0x1000, RAM_BASE + 0x2000, 0, 0]
    reply = wire.tdvmcall.unpack(client.ask(Kind.TDVMCALL, wire.tdvmcall.pack(0, 2, *regs)))
    assert reply == (0, 2, *regs)  # R10 = 0
    assert struct.unpack_from("<II", os.pread(fd, 24, 0x2000), 16) == (64, 0)
    refused(client, Code.ROLE, Kind.TDVMCALL, wire.tdvmcall.pack(0, 1, *regs))
    refused(client, Code.UNKNOWN_VCPU, Kind.TDVMCALL, wire.tdvmcall.pack(5, 2, *regs))
    os.close(fd)
    client.close()


def test_S65_features_that_were_not_negotiated(guest):
    for kind, payload in (
        (Kind.TDVMCALL, wire.tdvmcall.pack(0, 2, *[0] * 16)),
        (Kind.SCHEDULE, b"{}"),
        (Kind.TRACE, wire.switch.pack(1, 0)),
    ):
        refused(guest, Code.ROLE, kind, payload)


def test_S65_schedules_and_traces_in_a_server_for_tests(serve):
    server = serve(Notebook(), test_features=True)
    client = GuestClient.connect(server.path)
    assert client.hello(features=7).features == 7
    fd = sealed_memfd(RAM_BYTES)
    client.mem_add(fd, RAM_BASE, RAM_BYTES)
    client.vcpu_add(0, ca=CA_GPA)
    client.ask(Kind.TRACE, wire.switch.pack(1, 0))
    os.pwrite(fd, b"\1", 0)
    os.pwrite(fd, note(WRITE, b"k", b"v"), BUFFER_GPA - RAM_BASE)
    payload = client.call_payload(0, Registers(rax=call_number(4, 1), rcx=BUFFER_GPA, rdx=PAGE))
    tag = client.post(Kind.CALL, payload)
    records = []
    while True:
        answered, reply = client.take()
        if answered == tag:
            break
        records.append(wire.trace_record.unpack(reply))
    assert [r[0] for r in records] == list(range(5))
    assert [(r[1], r[4]) for r in records] == [
        (CA_GPA, 0), (CA_GPA, 1), (BUFFER_GPA, 0), (BUFFER_GPA + 24, 0), (BUFFER_GPA + 24, 1)
    ]  # fmt: skip
    client.ask(Kind.TRACE, wire.switch.pack(0, 0))
    client.ask(Kind.SCHEDULE, b'{"drop_entries": [0], "stop_replies": [1]}')
    os.pwrite(fd, b"\1", 0)
    reply = wire.call_reply.unpack(client.ask(Kind.CALL, payload))
    assert reply[1] == Outcome.NOT_ENTERED
    assert os.pread(fd, 1, 0) == b"\1"
    client.post(Kind.CALL, payload)
    client.wait_s = 0.2
    with pytest.raises(ServerGone, match="no answer"):
        client.take()
    refused(client, Code.RESERVED, Kind.SCHEDULE, b"nonsense")
    os.close(fd)
    client.close()


def test_S62_a_call_that_was_given_up_changes_nothing_later(serve):
    """It waited for the store until its deadline, the guest was told BUSY; the store comes free afterwards."""
    notebook = Notebook()
    service = Service(notebook, turn_s=30)
    server = serve(service, deadline_s=0.15)
    client = GuestClient.start(server.path)
    client.poke(BUFFER_GPA, note(APPEND, b"k", b"x"))
    client.poke(CA_GPA, b"\1")
    regs = Registers(rax=call_number(4, 1), rcx=BUFFER_GPA, rdx=PAGE)
    with service.lock:
        reply = client.enter_raw(0, regs)
    assert reply.regs.rax == BUSY
    deadline = time.monotonic() + 10
    while server.busy and time.monotonic() < deadline:
        time.sleep(0.01)
    assert notebook.values == {}
    assert note_reply(client.mm_request(note(APPEND, b"k", b"x")))[0] == 0
    assert notebook.values == {b"k".ljust(16, b"\0"): b"x"}
    client.close()


def test_S63_the_next_boot_waits_for_the_calls_of_the_last(serve, monkeypatch):
    """A call that was copied in before the power off must not run in the next boot."""
    notebook = Notebook()
    service = Service(notebook)
    serve_it, waiting, go_on = Service.mm, threading.Event(), threading.Event()

    def slow(self, *arguments, **more):
        waiting.set()
        assert go_on.wait(10)
        return serve_it(self, *arguments, **more)

    server = serve(service)
    client = GuestClient.start(server.path)
    client.poke(BUFFER_GPA, note(WRITE, b"k", b"of the last boot"))
    client.poke(CA_GPA, b"\1")
    monkeypatch.setattr(Service, "mm", slow)
    client.post(Kind.CALL, client.call_payload(0, Registers(rax=call_number(4, 1), rcx=BUFFER_GPA, rdx=PAGE)))
    assert waiting.wait(10)
    client.close()
    boots = []
    thread = threading.Thread(target=lambda: boots.append(GuestClient.start(server.path)))
    thread.start()
    thread.join(0.2)
    assert boots == []
    assert notebook.values == {}
    go_on.set()
    thread.join(10)
    assert notebook.values  # the last boot's commit stood before this boot began
    assert notebook.resets == 3
    boots[0].close()
