"""A small guest with an awkward memory map, and a message service simple enough to check by hand."""

import struct
from dataclasses import replace
from uuid import UUID

from svsm_bridge.abi import PAGE, SVSM_BASE, SVSM_SIZE, Outcome, Registers, call_number
from svsm_bridge.dispatcher import Dispatcher
from svsm_bridge.errors import InvalidParameter, InvalidRequest
from svsm_bridge.machine import Machine
from svsm_bridge.memory import GuestMemory
from svsm_bridge.pages import Kind
from svsm_bridge.profile import PROFILES
from svsm_bridge.service import Service
from svsm_bridge.watch import FetchAudit

VARIABLES = UUID("ed32d533-99e6-4209-9cc0-2d72cdd998a7")
POLICY = UUID("da1b0d11-d1a7-46c4-9dc9-f3714875c6eb")
END_OF_DXE = UUID("02ce967a-dd7e-4ffc-9ee7-810cf0470880")
READY_TO_BOOT = UUID("7ce88fb3-4bd7-4679-87a8-a8d8dee50d2b")
EXIT_BOOT_SERVICES = UUID("27abf055-b1b8-4c26-8048-748f37baa2df")
EVENTS = (END_OF_DXE, READY_TO_BOOT, EXIT_BOOT_SERVICES)

SUCCESS, UNSUPPORTED_PROTOCOL, UNSUPPORTED_CALL = 0, 0x80000001, 0x80000002
INVALID_ADDRESS, INVALID_PARAMETER, INVALID_REQUEST, BUSY = 0x80000003, 0x80000005, 0x80000006, 0x80000007
NOT_FOUND = 1 << 63 | 14

MESSAGE = struct.Struct("<QQ16sQ")  # function, status, key, size of the data or room for it; then the data
READ, WRITE, APPEND = 1, 3, 4


class Notebook:
    """Named values: read, write, append. Obeys R4, R5 and R10 like the real service."""

    def __init__(self):
        self.values = {}
        self.events = []
        self.resets = 0
        self.handled = 0

    def handle(self, header_guid, message):
        self.handled += 1
        if header_guid in EVENTS:
            self.events.append(header_guid)
            return b""
        if header_guid == POLICY:
            if len(message) < 20:
                raise InvalidParameter("policy message")
            return message
        if header_guid != VARIABLES:
            raise InvalidRequest("unknown GUID")
        if len(message) < 16:
            raise InvalidParameter("variable message")
        if len(message) < MESSAGE.size:
            return struct.pack("<QQ", 0, 1 << 63 | 4)
        function, _, key, size = MESSAGE.unpack_from(message)
        if MESSAGE.size + size > len(message):
            return MESSAGE.pack(function, 1 << 63 | 15, key, size)
        data = message[MESSAGE.size : MESSAGE.size + size]
        if function == READ:
            value = self.values.get(key)
            if value is None:
                return MESSAGE.pack(function, NOT_FOUND, key, 0)
            if len(value) > size:
                return MESSAGE.pack(function, 1 << 63 | 5, key, len(value))
            return MESSAGE.pack(function, 0, key, len(value)) + value
        if function == WRITE:
            self.values[key] = data
        elif function == APPEND:
            self.values[key] = self.values.get(key, b"") + data
        else:
            return MESSAGE.pack(function, 1 << 63 | 3, key, size)
        return MESSAGE.pack(function, 0, key, size)

    def reset(self):
        self.resets += 1
        self.events.clear()


def mm(guid, body, *, length=None):
    """A whole MM message: header and body."""
    return guid.bytes_le + struct.pack("<Q", len(body) if length is None else length) + body


def note(function, key, data=b""):
    """A message to a ``Notebook``."""
    return mm(VARIABLES, MESSAGE.pack(function, 0, key.ljust(16, b"\0"), len(data)) + data)


def note_reply(message):
    """Status and data of an answered message."""
    _, status, _, size = MESSAGE.unpack_from(message, 24)
    return status, message[24 + MESSAGE.size : 24 + MESSAGE.size + size]


# The memory map: every border that B30 asks for exists.
ROM_WINDOW = 0xA0000  # RAM, 0xA0000..0x100000, next to:
LOW = 0x100000  # RAM, 1 MiB
LOW_END = 0x200000  # gap up to:
BIG = 0x400000  # RAM, 4 MiB in 4 KiB entries
BIG_END = 0x800000
MMIO = 0xFE000000
ROM = 0xFF000000
HIGH = SVSM_BASE - 0x20000  # RAM up to the SVSM
SVSM_END = SVSM_BASE + SVSM_SIZE  # RAM behind it
HIGH_END = SVSM_END + 0x20000

CA0, CA1, CA2 = LOW, LOW + PAGE, LOW + 2 * PAGE
BUFFER = LOW + 0x10000
SCRATCH = LOW + 0x40000
OTHER = LOW + 0x80000


class Box:
    """A machine in this process: vCPUs 0 and 1 are up, 2 and 3 wait for CREATE_VCPU."""

    def __init__(self, profile="default", *, service=None, handler=None, guest_vmpl=2, observer=None, **more):
        self.notebook = handler or Notebook()
        self.service = service or Service(self.notebook, **more)
        self.audit = FetchAudit()
        memory = GuestMemory(observer=observer)
        self.machine = Machine(
            self.service, memory=memory, profile=PROFILES[profile], guest_vmpl=guest_vmpl, audit=self.audit
        )
        self.memory = self.machine.memory
        for base, end, kind in (
            (ROM_WINDOW, LOW, Kind.RAM),
            (LOW, LOW_END, Kind.RAM),
            (BIG, BIG_END, Kind.RAM),
            (MMIO, MMIO + 0x4000, Kind.MMIO),
            (ROM, ROM + 0x4000, Kind.ROM),
            (HIGH, SVSM_BASE, Kind.RAM),
            (SVSM_END, HIGH_END, Kind.RAM),
        ):
            self.memory.add(base, end - base, kind=kind, vmpl=guest_vmpl)
        self.bsp = self.machine.add_vcpu(0, ca=CA0)
        self.ap = self.machine.add_vcpu(1, ca=CA1)
        self.machine.add_vcpu(2)
        self.machine.add_vcpu(3)
        self.dispatcher = Dispatcher(self.machine)

    # --- the guest -----------------------------------------------------------------------------

    def poke(self, gpa, data):
        self.memory.host_write(gpa, data)

    def peek(self, gpa, size):
        return self.memory.host_read(gpa, size)

    def enter(self, regs, vcpu=None, **more):
        """Enter without touching the pending flag."""
        return self.dispatcher.enter(vcpu or self.bsp, regs, **more)

    def call(self, protocol, number, *, vcpu=None, **regs):
        """One call with garbage in every register it does not use; result and registers."""
        vcpu = vcpu or self.bsp
        file = garbage(rax=call_number(protocol, number), **regs)
        self.poke(vcpu.ca, b"\1")
        before = file.copy()
        assert self.enter(file, vcpu) == Outcome.SERVED
        assert self.peek(vcpu.ca, 1) == b"\0"
        assert file.rax >> 32 == 0  # B04, for every call of the suite
        for name in set(Registers.__slots__) - {"rax", "rcx", "rdx", "r8"}:  # B02
            assert getattr(file, name) == getattr(before, name), name
        return file.rax, file

    def mm(self, message, *, gpa=BUFFER, size=0x10000, vcpu=None):
        """One MM request as firmware makes it; RAX and the message afterwards."""
        self.poke(gpa, message)
        rax, _ = self.call(4, 1, rcx=gpa, rdx=size, vcpu=vcpu)
        return rax, self.peek(gpa, len(message))

    def memory_image(self):
        """Every byte of every range, and every page state."""
        regions = self.memory.rmp.regions
        return [
            (r.base, bytes(r.buffer), bytes(r.state), tuple(map(bytes, r.perm)), tuple(map(bytes, r.rights)))
            for r in regions
        ]


def garbage(**regs):
    """A register file in which every register holds a recognisable value."""
    file = Registers(*(0xDEAD_0000_0000_0000 + n * 0x0001_0001_0001 for n in range(18)))
    return replace(file, **regs)


class Untouched:
    """Asserts that a block changes no guest memory (M) and no stored value (K)."""

    def __init__(self, box, *, but=()):
        self.box = box
        self.but = but

    def __enter__(self):
        self.image = self._image()
        self.values = dict(self.box.notebook.values)

    def _image(self):
        for gpa, size in self.but:
            self.box.poke(gpa, bytes(size))
        return self.box.memory_image()

    def __exit__(self, kind, *_):
        if kind is None:
            assert self._image() == self.image, "guest memory or page state changed"
            assert self.box.notebook.values == self.values, "the store changed"
