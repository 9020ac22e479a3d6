"""The cross-process transport under everything that a peer can do to it: B60..B63, S60..S65."""

import os
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from svsm_bridge.abi import PAGE, SVSM_BASE, SVSM_SIZE, Outcome, Registers, call_number
from svsm_bridge.memory import sealed_memfd
from svsm_bridge.service import Service
from svsm_bridge.transports import wire
from svsm_bridge.transports.channel import PeerGone
from svsm_bridge.transports.client import GuestClient, ServerGone
from svsm_bridge.transports.guest import CA_GPA, RAM_BASE, RAM_BYTES
from svsm_bridge.transports.socket import listen
from svsm_bridge.transports.wire import Code, Feature, Kind, PageOp, TransportError
from tests.bridge.support import WRITE, Notebook, note

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
