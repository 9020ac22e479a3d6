"""Protocol 0, core: calling areas, vCPUs, discovery. Source: AMD 58019 "Core protocol"; svsm-calls 3.1.

DEPOSIT_MEM and WITHDRAW_MEM (4, 5) are not offered: this SVSM never asks the guest for memory.
"""

from typing import Final

from svsm_bridge.abi import (
    EFER_SVME,
    PAGE,
    VMSA_EFER,
    VMSA_SEV_FEATURES,
    VMSA_VMPL,
    Outputs,
)
from svsm_bridge.dispatcher import NO_OUTPUTS, VERSIONS, Call, Handler, Refused
from svsm_bridge.errors import Busy, CoreFailure, InvalidAddress, InvalidParameter, InvalidRequest
from svsm_bridge.machine import Vcpu
from svsm_bridge.pages import RWX, R, State
from svsm_bridge.protocols.pvalidate import pvalidate


def remap_ca(call: Call) -> Outputs:
    """Call 0: RCX = new calling area of this vCPU and VMPL. The old page becomes an ordinary one."""
    gpa, memory, vcpu = call.regs.rcx, call.memory, call.vcpu
    if gpa % PAGE:
        raise InvalidParameter(f"{gpa:#x} is not page aligned")
    with memory.rights:
        if gpa == vcpu.ca:
            if call.profile.c4_remap_to_itself:
                raise Refused(call.profile.c4_remap_to_itself)
            return NO_OUTPUTS
        try:
            call.machine.require_free_page(gpa, call.vmpl)
        except InvalidAddress as error:
            raise Refused(call.profile.c2_remap_bad_address, str(error)) from error
        call.turn.begin_effect()
        memory.svsm_write(gpa, bytes(8))
        memory.rmp.claim(gpa, State.CA)
        if vcpu.ca is not None:
            memory.rmp.release(vcpu.ca, State.CA)
        vcpu.ca = gpa
    return NO_OUTPUTS


def create_vcpu(call: Call) -> Outputs:
    """Call 2: RCX = VMSA, RDX = calling area, R8[31:0] = APIC id.

    The VMSA is copied after the guest has lost the right to write it, checked, and only the copy is used
    afterwards: whoever maps the backing can still change the page (2.3).
    """
    area, machine, memory = call.regs.rdx, call.machine, call.memory
    vmsa = call.regs.rcx
    if vmsa % PAGE or area % PAGE:
        raise Refused(call.profile.c14_create_misaligned, f"VMSA {vmsa:#x}, calling area {area:#x}")
    if vmsa == area:
        raise InvalidAddress("VMSA and calling area are the same page")
    with memory.rights:
        machine.require_free_page(vmsa, call.vmpl)
        machine.require_free_page(area, call.vmpl)
        target = machine.vcpus.get(call.regs.r8 & 0xFFFFFFFF)
        if target is None:
            raise InvalidParameter(f"no vCPU with APIC id {call.regs.r8 & 0xFFFFFFFF}")
        if target.running:
            raise CoreFailure(CoreFailure.IN_USE)
        call.turn.begin_effect()
        memory.rmp.claim(vmsa, State.HELD)
        memory.rmp.claim(area, State.CA)
        try:
            for level in (1, 2, 3):
                memory.rmp.rmpadjust(vmsa, vmpl=level, perm=0)
            copy = memory.svsm_copy(vmsa, PAGE, call)
            _require_good(call, copy)
            memory.svsm_write(area, bytes(8))
            memory.rmp.rmpadjust(vmsa, vmpl=machine.guest_vmpl, perm=R, vmsa=True)
        except BaseException:
            memory.rmp.release(vmsa, State.HELD)
            memory.rmp.release(area, State.CA)
            _give_back(call, vmsa)
            raise
        _bind(call, target, vmsa, area, copy)
    return NO_OUTPUTS


def _require_good(call: Call, copy: bytes) -> None:
    vmpl = copy[VMSA_VMPL]
    if vmpl != call.machine.guest_vmpl or vmpl < call.vmpl:  # never more privileged than its creator
        raise InvalidParameter(f"VMSA for VMPL{vmpl}")
    if not _u64(copy, VMSA_EFER) & EFER_SVME:
        raise InvalidParameter("EFER.SVME is clear in the VMSA")
    features = _u64(copy, VMSA_SEV_FEATURES)
    if call.profile.c18_compare_sev_features and features != call.vcpu.sev_features:
        raise InvalidParameter(f"SEV_FEATURES {features:#x}, the caller has {call.vcpu.sev_features:#x}")


def _u64(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 8], "little")


def _give_back(call: Call, gpa: int) -> None:
    """The guest may use the page again, if it is still private."""
    try:
        call.memory.rmp.rmpadjust(gpa, vmpl=call.machine.guest_vmpl, perm=RWX)
    except InvalidAddress:
        return


def _bind(call: Call, target: Vcpu, vmsa: int, area: int, copy: bytes) -> None:
    if target.ca is not None:
        call.memory.rmp.release(target.ca, State.CA)
    target.ca, target.vmsa_gpa, target.vmsa = area, vmsa, copy
    target.vmpl = copy[VMSA_VMPL]
    target.sev_features = _u64(copy, VMSA_SEV_FEATURES)
    call.machine.vmsas[vmsa] = target


def delete_vcpu(call: Call) -> Outputs:
    """Call 3: RCX = a VMSA that CREATE_VCPU took. The page goes back to the guest with all rights."""
    gpa, machine, memory = call.regs.rcx, call.machine, call.memory
    target = machine.vmsas.get(gpa)
    if target is None or call.vmpl != machine.guest_vmpl:
        raise InvalidParameter(f"{gpa:#x} is not a VMSA that was created")
    if target is call.vcpu:
        raise CoreFailure(CoreFailure.IN_USE)
    if call.profile.c7_delete_waits and not machine.wait_idle(target, machine.call_deadline_s):
        raise Busy(f"vCPU {target.apic_id} did not stop")
    with memory.rights:
        if machine.vmsas.get(gpa) is not target:
            raise InvalidParameter(f"{gpa:#x} is not a VMSA any more")
        if target.running:
            raise CoreFailure(CoreFailure.IN_USE)
        call.turn.begin_effect()
        efer = _u64(memory.svsm_read(gpa + VMSA_EFER, 8), 0) & ~EFER_SVME
        memory.svsm_write(gpa + VMSA_EFER, efer.to_bytes(8, "little"))
        memory.rmp.rmpadjust(gpa, vmpl=machine.guest_vmpl, perm=RWX)
        memory.rmp.release(gpa, State.HELD)
        del machine.vmsas[gpa]
        if target.vmsa_gpa == gpa:
            if target.ca is not None:
                memory.rmp.release(target.ca, State.CA)
            target.ca = target.vmsa_gpa = target.vmsa = None
    return NO_OUTPUTS


def query_protocol(call: Call) -> Outputs:
    """Call 6: RCX[63:32] protocol, [31:0] version; RCX = max << 32 | min, or 0. Always SUCCESS."""
    protocol, version = call.regs.rcx >> 32, call.regs.rcx & 0xFFFFFFFF
    least, most = VERSIONS.get(protocol, (1, 0))
    return (most << 32 | least if least <= version <= most else 0, None, None)


def configure_vtom(call: Call) -> Outputs:
    """Call 7: RCX bit 0 = query; there is no vTOM here, and none can be set."""
    if call.regs.rcx & 1:
        return (0, None, None)
    raise InvalidRequest("vTOM cannot be configured")


CALLS: Final[dict[int, Handler]] = {
    0: remap_ca,
    1: pvalidate,
    2: create_vcpu,
    3: delete_vcpu,
    6: query_protocol,
    7: configure_vtom,
}
