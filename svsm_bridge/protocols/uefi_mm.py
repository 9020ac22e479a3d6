"""Protocol 4, UEFI MM: one message in the guest's memory, answered in place.

Source: svsm-calls 3.5; rules R1..R5, R10; coconut-svsm `uefivars.rs`. Sizes in bytes.
"""

from typing import Final

from svsm_bridge.abi import MM_HEADER, MM_HEADER_BYTES, PAGE, Outputs
from svsm_bridge.dispatcher import NO_OUTPUTS, Call, Handler, Refused
from svsm_bridge.errors import InvalidAddress, InvalidParameter, InvalidRequest
from svsm_bridge.pages import R, W


def request(call: Call) -> Outputs:
    """Call 1: RCX = page-aligned buffer, RDX = its size. No register outputs.

    RAX speaks of the transport only; a UEFI status is in the message (S40). If the copy back fails after the
    service committed, the caller reads INVALID_ADDRESS and the commit stands, like a lost reply (S25).
    """
    memory, gpa, size = call.memory, call.regs.rcx, call.regs.rdx
    service = call.machine.service
    if gpa == 0:
        raise InvalidParameter("the buffer's address is 0")
    if gpa % PAGE:
        raise InvalidAddress(f"{gpa:#x} is not page aligned")
    if not MM_HEADER_BYTES <= size <= service.mm_limit:  # all 64 bits of RDX count
        if not memory.is_ram(gpa):  # the address comes first
            raise InvalidAddress(f"no buffer can start at {gpa:#x}")
        raise InvalidParameter(f"buffer of {size:#x} bytes")
    if not call.profile.c12_touched_bytes_only:
        memory.check(gpa, size, vmpl=call.vmpl, need=R | W)
    header = call.read(gpa, MM_HEADER_BYTES)
    length: int = MM_HEADER.unpack(header)[1]
    if length > size - MM_HEADER_BYTES:  # R3, P03
        raise InvalidParameter(f"MessageLength {length:#x} in a buffer of {size:#x} bytes")
    if call.profile.c12_touched_bytes_only:
        memory.check(gpa, MM_HEADER_BYTES + length, vmpl=call.vmpl, need=R | W)
    message = call.read(gpa + MM_HEADER_BYTES, length) if length else b""
    try:
        reply = service.mm(
            header,
            message,
            turn=call.turn,
            patience=call.vcpu.patience,
            longest_s=call.machine.call_deadline_s,
        )
    except InvalidRequest as unknown:
        raise Refused(call.profile.c13_unknown_mm_guid) from unknown
    if reply:
        call.write(gpa + MM_HEADER_BYTES, reply)
    return NO_OUTPUTS


CALLS: Final[dict[int, Handler]] = {1: request}
