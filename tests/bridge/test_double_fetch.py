"""Every message type of the real service, with an adversary under every offset (P01, S22, R1)."""

import json
import struct

import pytest

from cvars.mm.service import VariableService
from cvars.variables.limits import DEFAULT_LIMITS
from cvars.variables.profile import SPEC
from svsm_bridge.abi import Registers, call_number
from svsm_bridge.service import Service
from svsm_bridge.transports.guest import BUFFER_BYTES, BUFFER_GPA
from svsm_bridge.transports.inproc import InProcessGuest
from svsm_bridge.watch import FetchAudit
from tests.bridge.support import EVENTS, POLICY, VARIABLES, mm

GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
NAME = "Boot0001\0".encode("utf-16-le")


class Recording:
    """The real service, and what it was given and answered."""

    def __init__(self):
        self.service = VariableService(
            {}, profile=SPEC, limits=DEFAULT_LIMITS, commit=lambda _: None, trace=lambda _: None
        )
        self.seen = []

    def handle(self, guid, message):
        self.seen.append((guid, message))
        reply = self.service.handle(guid, message)
        self.seen.append(reply)
        return reply

    def reset(self):
        self.service.reset()


class Hostile:
    """Overwrites every byte of the guest right after it was read, with something else each time."""

    def __init__(self, guest):
        self.guest = guest
        self.turn = 0

    def before(self, access):
        pass

    def after(self, access, *, ok):
        if access.op == "read" and ok:
            self.turn += 1
            now = self.guest.peek(access.gpa, access.size)
            self.guest.poke(access.gpa, bytes(byte ^ (self.turn * 37 & 0xFF | 1) for byte in now))


def guests():
    audit = FetchAudit()
    plain, hostile = Recording(), Recording()
    a = InProcessGuest(Service(plain))
    b = InProcessGuest(Service(hostile), audit=audit)
    b.machine.watch(Hostile(b))
    return (a, plain), (b, hostile), audit


def send(guest, message):
    guest.poke(BUFFER_GPA, message.ljust(BUFFER_BYTES, b"\0"))
    guest.ram[0] = 1
    regs = Registers(rax=call_number(4, 1), rcx=BUFFER_GPA, rdx=BUFFER_BYTES)
    guest.dispatcher.enter(guest.machine.vcpus[0], regs)
    return regs.rax


def function_messages():
    """One message of each function and command, well formed as far as its header goes."""
    access = GLOBAL + struct.pack("<QQI", 16, len(NAME), 7) + NAME + bytes(16)
    name = GLOBAL + struct.pack("<Q", len(NAME)) + NAME
    for function in range(16):
        for payload in (access, name, name + bytes(64), bytes(48), b""):
            yield mm(VARIABLES, struct.pack("<QQ", function, 0) + payload)
    entry = struct.pack("<IHH16sIIIIB3x", 0x10000, 44 + len(NAME), 44, GLOBAL, 0, 0xFFFFFFFF, 0, 0, 0) + NAME
    for command in range(9):
        for payload in (b"", b"\0", entry, bytes(16364)):
            yield mm(POLICY, struct.pack("<IIIQ", 0x43504356, 1, command, 0) + payload)
    for event in EVENTS:
        for body in (b"", b"\0", bytes(64)):
            yield mm(event, body)


@pytest.mark.rule("P01", "S22", "R1", "B34", "B35")
def test_P01_every_function_answers_from_its_first_read():
    (a, plain), (b, hostile), audit = guests()
    count = 0
    for message in function_messages():
        assert send(a, message) == send(b, message)
        count += 1
    assert plain.seen == hostile.seen
    assert audit.violations == []
    assert count > 120


@pytest.mark.rule("P01", "S22")
@pytest.mark.parametrize("name", ["malformed", "names", "buffer", "next", "policy", "data", "attrs"])
def test_P01_recorded_messages_answer_from_their_first_read(vectors, name):
    (a, plain), (b, hostile), audit = guests()
    for line in (vectors / "mm" / f"{name}.jsonl").read_text().splitlines():
        step = json.loads(line)
        if step["op"] == "call":
            message = bytes.fromhex(step["request"])
            if 24 <= len(message) <= BUFFER_BYTES:
                assert send(a, message) == send(b, message)
    assert plain.seen == hostile.seen
    assert len(plain.seen) > 10
    assert audit.violations == []


@pytest.mark.rule("P01")
@pytest.mark.parametrize("offset", range(120))
def test_P01_one_byte_changes_under_each_offset(offset):
    """One byte at a time, at every offset of a SetVariable, right after the read that covers it."""
    (a, plain), (b, hostile), _ = guests()
    b.machine.unwatch(b.machine._observers[-1])

    class OneByte:
        def before(self, access):
            pass

        def after(self, access, *, ok):
            at = BUFFER_GPA + offset
            if access.op == "read" and access.gpa <= at < access.gpa + access.size:
                b.poke(at, bytes([b.peek(at, 1)[0] ^ 0xFF]))

    b.machine.watch(OneByte())
    access = GLOBAL + struct.pack("<QQI", 16, len(NAME), 7) + NAME + bytes(range(16))
    message = mm(VARIABLES, struct.pack("<QQ", 3, 0) + access)
    assert send(a, message) == send(b, message) == 0
    assert plain.seen == hostile.seen
