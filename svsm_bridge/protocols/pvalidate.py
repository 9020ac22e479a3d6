"""Protocol 0, call 1: PVALIDATE for a list of pages. Source: AMD 58019; svsm-calls 3.1.

List: 0 u16 entries, 2 u16 next, 4 u32 reserved (ignored: Linux reuses its calling area uncleared), 8 u64[].
Entry: bits 1:0 size (0 = 4K, 1 = 2M), 2 validate, 3 ignore "unchanged", 11:4 reserved, 63:12 frame number.
"""

import struct
from typing import Final

from svsm_bridge.abi import LARGE, PAGE, Outputs
from svsm_bridge.dispatcher import NO_OUTPUTS, Call, Refused
from svsm_bridge.errors import CallError, CoreFailure, InvalidAddress, InvalidParameter
from svsm_bridge.pages import RWX, Kind, R, State, W

_HEADER: Final = struct.Struct("<HHI")
_ROLES: Final = State.CA | State.HELD | State.VMSA
_NOT_ZEROED_TO: Final = 0x100000


def pvalidate(call: Call) -> Outputs:
    """RCX = list. Stops at the first failure; only ``next`` is written back, earlier entries stay done."""
    gpa = call.regs.rcx
    if gpa % 8:
        raise InvalidParameter(f"list at {gpa:#x} is not aligned to 8")
    try:
        call.memory.check(gpa, _HEADER.size, vmpl=call.vmpl, need=R | W)
        entries, start, _ = _HEADER.unpack(call.read(gpa, _HEADER.size))
    except InvalidAddress as error:
        raise Refused(call.profile.c5_list_not_accessible, str(error)) from error
    room = (PAGE - gpa % PAGE - _HEADER.size) // 8
    if not start < entries <= room:
        raise InvalidParameter(f"{entries} entries, next {start}, room for {room}")
    raw = call.read(gpa + _HEADER.size + 8 * start, 8 * (entries - start))
    call.turn.begin_effect()
    done, failure = start, None
    for (entry,) in struct.iter_unpack("<Q", raw):
        try:
            _one(call, entry, gpa - gpa % PAGE)
        except CallError as error:
            failure = error
            break
        done += 1
    call.write(gpa + 2, done.to_bytes(2, "little"))
    if failure is not None:
        raise failure
    return NO_OUTPUTS


def _one(call: Call, entry: int, list_page: int) -> None:
    gpa, large = entry & ~0xFFF, entry & 3
    validate, ignore_unchanged = bool(entry & 4), bool(entry & 8)
    if entry & 0xFF0:
        raise InvalidParameter(f"reserved bits in entry {entry:#x}")
    if large > 1 or (large and gpa % LARGE):
        raise Refused(call.profile.c15_bad_entry_size, f"size {large} at {gpa:#x}")
    size = LARGE if large else PAGE
    memory = call.memory
    with memory.rights:
        region, offset = memory.rmp.find(gpa, size)
        first, last = offset // PAGE, (offset + size) // PAGE
        if region.kind is not Kind.RAM or any(state & _ROLES for state in region.state[first:last]):
            raise InvalidAddress(f"{gpa:#x} is not ordinary guest RAM")
        if call.vmpl != call.machine.guest_vmpl:  # a lower level may not take or empty pages of the guest VMPL
            raise InvalidAddress(f"pages belong to VMPL{call.machine.guest_vmpl}")
        if not validate and gpa <= list_page < gpa + size:
            raise InvalidParameter("the list's own page is invalidated")
        memory.note_rights(gpa, size, call)
        if validate:
            _validate(call, gpa, large=bool(large), ignore_unchanged=ignore_unchanged)
        else:
            _invalidate(call, gpa, large=bool(large), ignore_unchanged=ignore_unchanged)


def _validate(call: Call, gpa: int, *, large: bool, ignore_unchanged: bool) -> None:
    rmp, size = call.memory.rmp, LARGE if large else PAGE
    code = rmp.pvalidate(gpa, large=large, validate=True)
    if code and not (code == CoreFailure.UNCHANGED and ignore_unchanged):
        raise CoreFailure(code)
    if code:  # valid already: nobody looks while it is emptied
        _rights(call, gpa, 0, large=large)
    if not call.profile.c6_not_zeroed_from <= gpa < _NOT_ZEROED_TO:
        call.memory.svsm_write(gpa, bytes(size))  # before the guest has rights: B19
    _level(call, gpa, RWX, call.machine.guest_vmpl, large=large)


def _invalidate(call: Call, gpa: int, *, large: bool, ignore_unchanged: bool) -> None:
    rmp = call.memory.rmp
    if rmp.state_of(gpa) & State.VALIDATED:
        _rights(call, gpa, 0, large=large)
    code = rmp.pvalidate(gpa, large=large, validate=False)
    if code and not (code == CoreFailure.UNCHANGED and ignore_unchanged):
        raise CoreFailure(code)


def _rights(call: Call, gpa: int, perm: int, *, large: bool) -> None:
    for level in (1, 2, 3):
        _level(call, gpa, perm, level, large=large)


def _level(call: Call, gpa: int, perm: int, level: int, *, large: bool) -> None:
    code = call.memory.rmp.rmpadjust(gpa, large=large, vmpl=level, perm=perm)
    if code == CoreFailure.SIZE_MISMATCH:
        raise CoreFailure(code)
    if code:
        raise CoreFailure(CoreFailure.PERMISSION)
