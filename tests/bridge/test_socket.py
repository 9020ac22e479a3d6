"""The cross-process transport under everything that a peer can do to it: B60..B63, S60..S65."""

import os
import socket
import stat
import struct
import threading
import time
from pathlib import Path

import pytest

from svsm_bridge.abi import PAGE, SVSM_BASE, SVSM_SIZE, Outcome, Registers, call_number
from svsm_bridge.errors import GuestMustStop
from svsm_bridge.memory import sealed_memfd
from svsm_bridge.service import Service
from svsm_bridge.transports import tdx, wire
from svsm_bridge.transports.channel import PeerGone
from svsm_bridge.transports.client import GuestClient, ServerGone
from svsm_bridge.transports.guest import BUFFER_GPA, CA_GPA, RAM_BASE, RAM_BYTES
from svsm_bridge.transports.socket import listen
from svsm_bridge.transports.wire import Code, Feature, Kind, PageOp, TransportError
from tests.bridge.support import APPEND, BUSY, READ, SUCCESS, WRITE, Notebook, note, note_reply

ROOM = RAM_BASE + RAM_BYTES
HEADER = wire.header


class Gate(Notebook):
    """A notebook whose calls wait until the test lets them go on."""

    def __init__(self):
        super().__init__()
        self.inside = threading.Semaphore(0)
        self.go_on = threading.Event()

    def handle(self, guid, message):
        self.inside.release()
        assert self.go_on.wait(20)
        return super().handle(guid, message)


def fds():
    return len(list(Path("/proc/self/fd").iterdir()))


def request(kind, payload=b"", *, tag=1, magic=wire.MAGIC, flags=0, length=None):
    return HEADER.pack(magic, kind, flags, len(payload) if length is None else length, tag) + payload


def hello(*, roles=3, vmpl=2, apic_ids=64, versions=(1, 1), features=0, reserved=bytes(8)):
    return wire.hello.pack(*versions, roles, features, vmpl, apic_ids, reserved, b"test")


def refused(client, code, kind, payload, fds=()):
    """The request is answered with ``code``; closing codes close."""
    with pytest.raises(TransportError) as caught:
        client.ask(kind, payload, tuple(fds))
    assert caught.value.code == code, caught.value
    assert len(caught.value.text) <= 200
    if code in wire.CLOSING:
        with pytest.raises(ServerGone):
            client.ask(Kind.PAGE_QUERY, bytes(8))
    return caught.value


@pytest.fixture
def server(serve):
    return serve(Notebook())


@pytest.fixture
def guest(server):
    made = GuestClient.start(server.path)
    made.path = server.path
    yield made
    made.close()


# --- the path and the peer -----------------------------------------------------------------------------


def test_the_socket_is_private(server, tmp_path):
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.path.parent.stat().st_mode) == 0o700
    open_folder = tmp_path / "open"
    open_folder.mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="0700"):
        listen(open_folder / "s")
    with pytest.raises(OSError):
        listen(server.path)  # taken


def test_S65_another_user_is_not_served(server, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    client = GuestClient.connect(server.path)
    with pytest.raises(ServerGone):
        client.hello()
    client.close()


# --- HELLO ---------------------------------------------------------------------------------------------


def test_B60_hello(server):
    client = GuestClient.connect(server.path)
    answer = client.hello(features=0xFFFFFFFFFFFFFFFF)
    assert answer.version == 1
    assert answer.features == Feature.TDX  # unknown bits, and those that need the test option, are dropped
    assert (answer.svsm_base, answer.svsm_size, answer.boot_ca) == (SVSM_BASE, SVSM_SIZE, 0)
    assert (answer.guest_vmpl, answer.deadline_ms, answer.payload_limit) == (2, 5000, 65536)
    refused(client, Code.ORDER, Kind.HELLO, hello())
    client.close()


@pytest.mark.parametrize("versions", [(0, 0), (2, 9), (3, 1)])
def test_B60_no_common_version(server, versions):
    refused(GuestClient.connect(server.path), Code.VERSION, Kind.HELLO, hello(versions=versions))


@pytest.mark.parametrize("versions", [(0, 1), (1, 7), (0, 0xFFFF)])
def test_B60_a_common_version(server, versions):
    client = GuestClient.connect(server.path)
    assert client.hello(versions=versions).version == 1
    client.close()


@pytest.mark.parametrize("kind", [k for k in Kind if k != Kind.HELLO])
def test_B60_hello_comes_first(server, kind):
    size = wire.REQUEST_BYTES[kind]
    fd = sealed_memfd(PAGE)
    refused(GuestClient.connect(server.path), Code.ORDER, kind, bytes(size or 2), [fd] if kind == 2 else [])
    os.close(fd)


@pytest.mark.parametrize(
    ("code", "how"),
    [(Code.ROLE, {"roles": 0, "vmpl": 0}), (Code.ROLE, {"vmpl": 0}), (Code.ROLE, {"vmpl": 4}),
     (Code.RESERVED, {"roles": 4}), (Code.RESERVED, {"roles": 1, "vmpl": 2}),
     (Code.RESERVED, {"reserved": b"\1" + bytes(7)}), (Code.LIMIT, {"apic_ids": 0}),
     (Code.LIMIT, {"apic_ids": 1 << 31}), (Code.ORDER, {"roles": 1, "vmpl": 0})],
)  # fmt: skip
def test_B60_bad_hellos(server, code, how):
    client = GuestClient.connect(server.path)
    refused(client, code, Kind.HELLO, hello(**how))
    client.close()


def test_S60_a_second_machine_connection_must_agree(guest, server):
    other = GuestClient.connect(server.path)
    refused(other, Code.ROLE, Kind.HELLO, hello(vmpl=1))
    other.hello()
    other.vcpu_add(5)
    assert guest.query_protocol(4)
    other.close()
    assert guest.query_protocol(4)  # still on: one machine connection is left


# --- framing -------------------------------------------------------------------------------------------


@pytest.mark.rule("B62")
@pytest.mark.parametrize(
    ("code", "raw"),
    [(Code.MAGIC, request(5, magic=0x31425657)), (Code.LENGTH, request(5, length=65537)),
     (Code.LENGTH, request(5, length=0xFFFFFFFF)), (Code.LENGTH, request(Kind.CALL, bytes(0xA7))),
     (Code.LENGTH, request(Kind.RESET)), (Code.RESERVED, request(Kind.RESET, bytes(8), flags=1)),
     (Code.RESERVED, request(Kind.RESET, bytes(8), flags=4)), (Code.ORDER, request(0)),
     (Code.ORDER, request(12)), (Code.ORDER, request(0xFFFF, bytes(9)))],
)  # fmt: skip
def test_malformed_messages_are_named_and_end_the_connection(guest, server, code, raw):
    guest.channel.send_raw(raw)
    tag, error = guest.take()
    assert isinstance(error, TransportError)
    assert (error.code, tag) == (code, 1 if code != Code.MAGIC else tag)
    with pytest.raises(ServerGone):
        guest.take()
    client = GuestClient.start(server.path)
    assert client.query_protocol(4)
    client.close()


def test_S64_a_message_in_pieces_is_served(guest):
    payload = wire.page_query.pack(RAM_BASE)
    for at in range(16 + 8):
        raw = request(Kind.PAGE_QUERY, payload, tag=at)
        guest.channel.send_raw(raw[:at])
        time.sleep(0.001)
        guest.channel.send_raw(raw[at:])
        assert guest.take()[0] == at


def test_S64_many_messages_at_once_are_served(guest):
    raw = b"".join(request(Kind.PAGE_QUERY, wire.page_query.pack(RAM_BASE), tag=n) for n in range(50))
    guest.channel.send_raw(raw)
    assert [guest.take()[0] for _ in range(50)] == list(range(50))


@pytest.mark.parametrize("cut", [1, 15, 16, 20])
def test_S64_a_partial_message_times_out(serve, cut):
    server = serve(Notebook(), partial_s=0.1)
    client = GuestClient.start(server.path)
    client.channel.send_raw(request(Kind.CALL, bytes(0xA8))[:cut])
    start = time.monotonic()
    with pytest.raises(ServerGone):
        client.take()
    assert 0.05 < time.monotonic() - start < 5
    client.close()
    assert server.wait_closed()


def test_S64_a_drip_does_not_extend_the_time(serve):
    server = serve(Notebook(), partial_s=0.2)
    client = GuestClient.start(server.path)
    start = time.monotonic()
    for byte in request(Kind.CALL, bytes(0xA8)):
        try:
            client.channel.send_raw(bytes([byte]))
        except PeerGone:
            break
        time.sleep(0.02)
    assert time.monotonic() - start < 2
    client.close()


def test_S64_a_client_that_never_reads(serve):
    """A flood of requests whose replies nobody takes: that connection ends, others are served."""
    server = serve(Notebook(), partial_s=0.2)
    client = GuestClient.start(server.path)
    with pytest.raises(PeerGone):
        list(map(lambda n: client.channel.send(Kind.PAGE_QUERY, 0, n, bytes(8)), range(100000)))  # noqa: C417
    other = GuestClient.start(server.path)
    assert other.query_protocol(4)
    other.close()
    client.close()


def test_S64_too_many_calls_waiting(serve):
    """65 vCPUs wait on one connection: more than may be queued."""
    gate = Gate()
    server = serve(Service(gate, turn_s=30))  # nobody is told BUSY
    client = GuestClient.connect(server.path)
    client.hello(apic_ids=100)
    fd = sealed_memfd(PAGE * 200)
    client.mem_add(fd, RAM_BASE, PAGE * 200)
    buffer = RAM_BASE + 100 * PAGE
    os.pwrite(fd, note(WRITE, b"k", b"v"), buffer - RAM_BASE)
    regs = Registers(rax=call_number(4, 1), rcx=buffer, rdx=PAGE)
    for vcpu in range(66):
        client.vcpu_add(vcpu, ca=RAM_BASE + vcpu * PAGE)
        os.pwrite(fd, b"\1", vcpu * PAGE)
    os.close(fd)
    for vcpu in range(64):
        client.post(Kind.CALL, client.call_payload(vcpu, regs))
    assert client.page_query(buffer).kind == 1  # 64 wait, and the connection works
    client.post(Kind.CALL, client.call_payload(64, regs))
    with pytest.raises(ServerGone):
        client.take()
    gate.go_on.set()
    client.close()
    assert server.wait_closed()


# --- memory --------------------------------------------------------------------------------------------


def mem_add(*, gpa=ROOM, size=PAGE, offset=0, kind=1, state=1):
    return wire.mem_add.pack(gpa, size, offset, kind, state)


def test_B61_S60_what_is_not_a_good_memfd(guest, tmp_path):
    before = fds()
    plain = tmp_path / "file"
    plain.write_bytes(bytes(PAGE))
    regular = os.open(plain, os.O_RDWR)
    unsealed = os.memfd_create("unsealed")
    os.ftruncate(unsealed, PAGE)
    pair = socket.socketpair()
    short = sealed_memfd(PAGE)
    pipe = os.pipe()
    for fd in (regular, unsealed, pair[0].fileno(), pipe[0], os.open("/dev/null", os.O_RDONLY)):
        refused(guest, Code.FD, Kind.MEM_ADD, mem_add(), [fd])
    for count in (0, 2, 8):
        refused(guest, Code.FD, Kind.MEM_ADD, mem_add(), [short] * count)
    refused(guest, Code.FD, Kind.MEM_ADD, mem_add(), [short] * 12)  # cut by the kernel
    refused(guest, Code.FD, Kind.PAGE_QUERY, bytes(8), [short])
    for how in ({"size": 2 * PAGE}, {"offset": PAGE}, {"offset": 8}, {"size": 0}, {"offset": (1 << 64) - PAGE}):
        refused(guest, Code.FD, Kind.MEM_ADD, mem_add(**how), [short])
    for how in (
        {"gpa": RAM_BASE}, {"gpa": RAM_BASE + RAM_BYTES - PAGE}, {"gpa": SVSM_BASE}, {"gpa": SVSM_BASE + PAGE},
        {"gpa": ROOM + 1}, {"gpa": 1 << 48}, {"gpa": (1 << 64) - PAGE}, {"size": 8},
    ):  # fmt: skip
        refused(guest, Code.OVERLAP, Kind.MEM_ADD, mem_add(**how), [short])
    assert guest.query_protocol(4)
    for fd in (regular, unsealed, short, *pipe):
        os.close(fd)
    for end in pair:
        end.close()
    time.sleep(0.05)
    assert fds() <= before + 1  # /dev/null of this test


@pytest.mark.parametrize("how", [{"kind": 0}, {"kind": 3}, {"kind": 9}, {"state": 2}])
def test_B61_reserved_values(guest, how):
    fd = sealed_memfd(PAGE)
    refused(guest, Code.RESERVED, Kind.MEM_ADD, mem_add(**how), [fd])
    os.close(fd)


def test_S60_limits(guest):
    fd = sealed_memfd(PAGE)
    for n in range(63):
        guest.mem_add(fd, ROOM + 2 * n * PAGE, PAGE)
    refused(guest, Code.LIMIT, Kind.MEM_ADD, mem_add(gpa=ROOM + 500 * PAGE), [fd])
    guest.mem_del(ROOM, PAGE)
    guest.mem_add(fd, ROOM, PAGE)
    refused(guest, Code.OVERLAP, Kind.MEM_DEL, wire.mem_del.pack(ROOM, 2 * PAGE))
    refused(guest, Code.OVERLAP, Kind.MEM_DEL, wire.mem_del.pack(RAM_BASE, RAM_BYTES))  # its calling area
    os.close(fd)
    huge = sealed_memfd((16 << 30) + PAGE)
    guest.mem_del(ROOM, PAGE)
    refused(guest, Code.LIMIT, Kind.MEM_ADD, mem_add(gpa=1 << 40, size=16 << 30), [huge])
    os.close(huge)


def test_S60_memory_is_unmapped_at_power_off(serve):
    server = serve(Notebook())
    before = fds()
    maps = Path("/proc/self/maps").read_text().count("guest-ram")
    for _ in range(3):
        guest = GuestClient.start(server.path)
        assert guest.query_protocol(4)
        guest.close()
        assert server.wait_closed()
    assert fds() == before
    assert Path("/proc/self/maps").read_text().count("guest-ram") == maps


def test_page_states(guest):
    gpa = RAM_BASE + 0x80000
    assert guest.page_query(gpa) == (1, 3, b"\x0f\0\x0f\0")
    assert guest.page_query(CA_GPA).bits == 0b10011
    assert guest.page_query(ROOM) == (0, 0, bytes(4))
    assert guest.page_query(1 << 63).kind == 0
    guest.page_state(gpa, PAGE, PageOp.MAKE_SHARED)
    assert guest.page_query(gpa) == (1, 0, bytes(4))
    guest.page_state(gpa, PAGE, PageOp.ASSIGN)
    assert guest.page_query(gpa) == (1, 1, bytes(4))
    guest.page_state(gpa, PAGE, PageOp.UNMAP)
    guest.page_state(gpa, PAGE, PageOp.REMAP, source=gpa + PAGE)
    for payload, code in (
        (wire.page_state.pack(gpa, PAGE, 9, 0, 0), Code.RESERVED),
        (wire.page_state.pack(gpa, PAGE, 1, 1, 0), Code.RESERVED),
        (wire.page_state.pack(gpa, PAGE, 1, 0, PAGE), Code.RESERVED),
    ):
        other = GuestClient.connect(guest.path)
        other.hello()
        refused(other, code, Kind.PAGE_STATE, payload)
        other.close()
    for bad in ((gpa + 1, PAGE), (gpa, 0), (ROOM, PAGE), (SVSM_BASE, PAGE), ((1 << 64) - PAGE, PAGE)):
        refused(guest, Code.OVERLAP, Kind.PAGE_STATE, wire.page_state.pack(*bad, 1, 0, 0))
    refused(guest, Code.OVERLAP, Kind.PAGE_STATE, wire.page_state.pack(gpa, PAGE, 4, 0, ROOM))


def test_vcpus(guest):
    refused(guest, Code.LIMIT, Kind.VCPU_ADD, wire.vcpu_add.pack(64, 0, 0, 1))
    refused(guest, Code.OVERLAP, Kind.VCPU_ADD, wire.vcpu_add.pack(0, 0, 0, 1))
    for area in (CA_GPA, CA_GPA + 8, ROOM, SVSM_BASE):
        refused(guest, Code.OVERLAP, Kind.VCPU_ADD, wire.vcpu_add.pack(1, 0, area, 1))
    refused(guest, Code.UNKNOWN_VCPU, Kind.CALL, guest.call_payload(9, Registers()))
    guest.vcpu_add(1)
    assert guest.enter_raw(1, Registers()).outcome == Outcome.NO_CALLING_AREA
    refused(guest, Code.RESERVED, Kind.VCPU_ADD, wire.vcpu_add.pack(2, 1, 0, 1))


def test_roles(server, guest):
    other = GuestClient.connect(server.path)
    other.hello(roles=1, guest_vmpl=0)
    fd = sealed_memfd(PAGE)
    refused(other, Code.ROLE, Kind.MEM_ADD, mem_add(), [fd])
    os.close(fd)
    for kind in (Kind.MEM_DEL, Kind.VCPU_ADD, Kind.PAGE_STATE, Kind.RESET, Kind.SCHEDULE):
        refused(other, Code.ROLE, kind, bytes(wire.REQUEST_BYTES[kind] or 2))
    machine_only = GuestClient.connect(server.path)
    machine_only.hello(roles=2)
    refused(machine_only, Code.ROLE, Kind.CALL, guest.call_payload(0, Registers()))
    guest.poke(CA_GPA, b"\1")
    assert other.enter_raw(0, Registers(rax=call_number(0, 6)), vmpl=2).outcome == Outcome.SERVED
    other.close()
    machine_only.close()


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


def test_S62_a_commit_is_finished_whatever_the_clock_says(serve):
    gate = Gate()
    server = serve(gate, deadline_s=0.1)
    client = GuestClient.start(server.path)
    client.wait_s = 10
    threading.Timer(0.4, gate.go_on.set).start()
    assert note_reply(client.mm_request(note(WRITE, b"k", b"v")))[0] == 0
    assert gate.values
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
    take, waiting, go_on = Service.take_turn, threading.Event(), threading.Event()

    def slow(self, *arguments):
        waiting.set()
        assert go_on.wait(10)
        take(self, *arguments)

    server = serve(service)
    client = GuestClient.start(server.path)
    client.poke(BUFFER_GPA, note(WRITE, b"k", b"of the last boot"))
    client.poke(CA_GPA, b"\1")
    monkeypatch.setattr(Service, "take_turn", slow)
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
