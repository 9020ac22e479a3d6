"""What a machine-role connection may do to its guest: memory, page states, vCPUs, reset (section 6)."""

import fcntl
import os
import stat

from svsm_bridge.abi import PAGE
from svsm_bridge.errors import InvalidAddress
from svsm_bridge.memory import F_GET_SEALS, F_SEAL_SHRINK
from svsm_bridge.pages import Kind as PageKind
from svsm_bridge.pages import State
from svsm_bridge.transports import wire
from svsm_bridge.transports.channel import Message
from svsm_bridge.transports.guest_slot import GuestSlot
from svsm_bridge.transports.wire import Code, Kind, PageOp, TransportError


def answer(slot: GuestSlot, message: Message) -> bytes:
    """Do what a message asks for; the payload of its reply.

    Raises:
        TransportError: refused, and nothing changed.
    """
    match message.kind:
        case Kind.MEM_ADD:
            return _mem_add(slot, message)
        case Kind.MEM_DEL:
            return _mem_del(slot, message.payload)
        case Kind.VCPU_ADD:
            return _vcpu_add(slot, message.payload)
        case Kind.PAGE_STATE:
            return _page_state(slot, message.payload)
        case Kind.PAGE_QUERY:
            return _page_query(slot, message.payload)
        case Kind.RESET:
            kind, reserved = wire.reset.unpack(message.payload)
            if kind != 1 or reserved:
                raise TransportError(Code.RESERVED, f"no reset of kind {kind}")
            slot.machine.platform_reset()
            return b""
        case _:
            raise TransportError(Code.ORDER, f"no message has type {message.kind}")


def _mem_add(slot: GuestSlot, message: Message) -> bytes:
    gpa, size, offset, kind, state = wire.mem_add.unpack(message.payload)
    if kind not in (PageKind.RAM, PageKind.ROM) or state not in (0, 1):
        raise TransportError(Code.RESERVED, f"kind {kind}, state {state}")
    fd = message.fds[0]
    _require_sealed(fd, offset, size)
    slot.add_range(size)
    try:
        slot.machine.memory.add(
            gpa, size, kind=PageKind(kind), private=state == 1, vmpl=slot.machine.guest_vmpl, fd=fd, offset=offset
        )
    except InvalidAddress as error:
        slot.drop_range(size)
        raise TransportError(Code.OVERLAP, str(error)) from error
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        slot.drop_range(size)
        raise TransportError(Code.FD, "the memfd cannot be mapped") from error
    return b""


def _require_sealed(fd: int, offset: int, size: int) -> None:
    """S60: without the seal the peer could truncate the file under the mapping and kill us with SIGBUS."""
    try:
        seals = fcntl.fcntl(fd, F_GET_SEALS)
    except OSError as error:
        raise TransportError(Code.FD, "not a memfd") from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or not seals & F_SEAL_SHRINK:
        raise TransportError(Code.FD, "the memfd can still shrink: F_SEAL_SHRINK is not set")
    if size == 0 or offset % PAGE or offset + size > status.st_size:
        raise TransportError(Code.FD, f"{offset:#x}+{size:#x} is not inside a file of {status.st_size:#x} bytes")


def _mem_del(slot: GuestSlot, payload: bytes) -> bytes:
    gpa, size = wire.mem_del.unpack(payload)
    try:
        slot.machine.memory.remove(gpa, size)
    except InvalidAddress as error:
        raise TransportError(Code.OVERLAP, str(error)) from error
    slot.drop_range(size)
    return b""


def _vcpu_add(slot: GuestSlot, payload: bytes) -> bytes:
    apic_id, reserved, area, features = wire.vcpu_add.unpack(payload)
    if reserved:
        raise TransportError(Code.RESERVED, "reserved bytes of VCPU_ADD are not zero")
    if apic_id >= slot.apic_ids:
        raise TransportError(Code.LIMIT, f"APIC id {apic_id}, HELLO announced {slot.apic_ids}", apic_id)
    try:
        slot.machine.add_vcpu(apic_id, ca=area or None, sev_features=features)
    except (InvalidAddress, ValueError) as error:
        raise TransportError(Code.OVERLAP, str(error), apic_id) from error
    return b""


def _page_state(slot: GuestSlot, payload: bytes) -> bytes:
    gpa, size, op, reserved, source = wire.page_state.unpack(payload)
    memory = slot.machine.memory
    if reserved or (source and op != PageOp.REMAP):
        raise TransportError(Code.RESERVED, "reserved bytes of PAGE_STATE are not zero")
    if (gpa | size | source) % PAGE or not size:
        raise TransportError(Code.OVERLAP, f"{gpa:#x}+{size:#x} are not whole pages")
    try:
        with memory.rights:
            match op:
                case PageOp.ASSIGN | PageOp.MAKE_SHARED:
                    memory.rmp.rmpupdate(gpa, size, assigned=op == PageOp.ASSIGN)
                case PageOp.UNMAP:
                    memory.rmp.unmap(gpa, size)
                case PageOp.REMAP:
                    memory.rmp.find(gpa, size)
                    memory.rmp.find(source, size)
                    for at in range(0, size, PAGE):
                        memory.rmp.remap(gpa + at, memory.frame(source + at))
                case _:
                    raise TransportError(Code.RESERVED, f"no page operation {op}")
    except InvalidAddress as error:
        raise TransportError(Code.OVERLAP, str(error)) from error
    return b""


def _page_query(slot: GuestSlot, payload: bytes) -> bytes:
    (gpa,) = wire.page_query.unpack(payload)
    memory = slot.machine.memory
    with memory.rights:
        try:
            region, index = memory.rmp.entry(gpa)
        except InvalidAddress:
            return wire.page_query_reply.pack(PageKind.NONE, 0, bytes(4), 0)
        state = region.state[index]
        marks = (State.ASSIGNED, State.VALIDATED, State.VMSA, State.LARGE, State.CA)
        bits = sum(1 << n for n, mark in enumerate(marks) if state & mark)
        validated = state & State.VALIDATED
        perm = bytes([0xF if validated else 0, *(region.perm[level][index] for level in range(1, 4))])
        return wire.page_query_reply.pack(region.kind, bits, perm, 0)
