"""From VMGEXIT to a result in RAX.

Entry sequence S9, then protocol and call (S5). A call reads registers and gives back outputs;
only here registers change, and only RAX and those outputs (S2). Every error becomes a result in `_run`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn, TypeAlias

from svsm_bridge.abi import ATTESTATION, CORE, UEFI_MM, VMGEXIT, Outcome, Outputs, Registers, call_number
from svsm_bridge.errors import (
    CallError,
    GuestMustStop,
    InvalidAddress,
    SvsmResult,
    UnsupportedCall,
    UnsupportedProtocol,
)
from svsm_bridge.machine import Machine, Vcpu
from svsm_bridge.memory import GuestMemory
from svsm_bridge.profile import BridgeProfile
from svsm_bridge.service import UNHURRIED, Turn, incident

NO_OUTPUTS: Final[Outputs] = (None, None, None)


class Call:
    """One call under way: who calls, with which registers, and the way to the guest's memory.

    ``regs`` is the register file as it was on entry; no call changes it.
    """

    __slots__ = ("machine", "memory", "number", "profile", "regs", "turn", "vcpu", "vcpu_id", "vmpl")

    def __init__(self, machine: Machine, vcpu: Vcpu, regs: Registers, turn: Turn) -> None:
        self.machine = machine
        self.memory: GuestMemory = machine.memory
        self.profile: BridgeProfile = machine.profile
        self.vcpu = vcpu
        self.vcpu_id = vcpu.apic_id
        self.vmpl = vcpu.vmpl  # of the VMSA that was running, never of memory (S14)
        self.regs = regs
        self.number = regs.rax
        self.turn = turn

    def read(self, gpa: int, size: int) -> bytes:
        """Copy guest bytes once, with the rights of the caller (S20-S23)."""
        return self.memory.read(gpa, size, vmpl=self.vmpl, caller=self)

    def write(self, gpa: int, data: bytes) -> None:
        """Copy bytes out with the rights of the caller (S20-S25)."""
        self.memory.write(gpa, data, vmpl=self.vmpl, caller=self)


class Refused(CallError):
    """A call that fails with outputs, or with a result that a choice point decides."""

    def __init__(self, result: int, message: str = "", outputs: Outputs = NO_OUTPUTS) -> None:
        super().__init__(message)
        self.result = result  # type: ignore[misc]
        self.outputs = outputs


Handler: TypeAlias = Callable[[Call], Outputs]


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One entry, for a call trace: register files before and after, never memory. ``duration_ns``."""

    vcpu: int
    vmpl: int
    outcome: Outcome
    before: Registers
    after: Registers
    duration_ns: int

    def members(self) -> dict[str, int | str]:
        """The members of a trace event: register files as hex of 64-bit words, in the order of section 6."""
        asked = self.before.rax
        return {
            "vcpu": self.vcpu,
            "vmpl": self.vmpl,
            "protocol": asked >> 32,
            "call": asked & 0xFFFFFFFF,
            "result": self.after.rax,
            "registers_in": "".join(f"{value:016x}" for value in self.before.values()),
            "registers_out": "".join(f"{value:016x}" for value in self.after.values()),
            "duration_ns": self.duration_ns,
        }


CallTrace: TypeAlias = Callable[[CallRecord], None]


class Dispatcher:
    """The SVSM of one machine, as a vCPU enters it."""

    def __init__(self, machine: Machine, *, on_call: CallTrace | None = None) -> None:
        from svsm_bridge.protocols import PROTOCOLS  # noqa: PLC0415 - protocols import this module

        self.machine = machine
        self._on_call = on_call
        self._protocols = frozenset(PROTOCOLS)
        self._calls = {
            call_number(protocol, number): handler
            for protocol, calls in PROTOCOLS.items()
            for number, handler in calls.items()
        }

    def enter(self, vcpu: Vcpu, regs: Registers, *, exit_code: int = VMGEXIT, turn: Turn = UNHURRIED) -> Outcome:
        """Enter the SVSM on ``vcpu``; ``regs`` changes as the guest would see it.

        Raises:
            GuestMustStop: the guest's store cannot be trusted any more.
            NeverResumed: a schedule wants that the guest does not run again.
        """
        if self._on_call is None:
            return self._enter(vcpu, regs, exit_code, turn)
        before, start = regs.copy(), time.perf_counter_ns()
        outcome = self._enter(vcpu, regs, exit_code, turn)
        spent = time.perf_counter_ns() - start
        self._on_call(CallRecord(vcpu.apic_id, vcpu.vmpl, outcome, before, regs.copy(), spent))
        return outcome

    def _enter(self, vcpu: Vcpu, regs: Registers, exit_code: int, turn: Turn) -> Outcome:
        if exit_code != VMGEXIT:  # S9 (1)
            return Outcome.NOTHING_PENDING
        machine = self.machine
        if vcpu.inside is not None:  # one VMPL0 context per vCPU: entering it again only lets it go on
            return Outcome.NOTHING_PENDING
        hypervisor = machine.entry_filter
        if hypervisor is not None and not hypervisor.enter(vcpu):
            return Outcome.NOT_ENTERED
        call = Call(machine, vcpu, regs, turn)
        vcpu.inside = call
        with machine.memory.rights:  # from here on nobody takes this vCPU's calling area away
            vcpu.calls.add(call)
            area = vcpu.ca
        audit = machine.audit
        if audit is not None:
            audit.begin(call)
        try:
            if area is None:
                return Outcome.NO_CALLING_AREA
            try:
                pending = machine.memory.load_flag(area, call)
                if pending == 0 or (pending != 1 and machine.profile.c1_pending_only_one):
                    return Outcome.NOTHING_PENDING
                machine.memory.store_u8(area, 0, call)  # before dispatch, byte 0 only (S9)
            except InvalidAddress:
                return Outcome.NO_CALLING_AREA
            result, outputs = self._run(call)
        finally:
            machine.left(vcpu, call)
            if vcpu.inside is call:
                vcpu.inside = None
            if audit is not None:
                audit.end(call)
        regs.rax = int(result)
        rcx, rdx, r8 = outputs
        if rcx is not None:
            regs.rcx = rcx
        if rdx is not None:
            regs.rdx = rdx
        if r8 is not None:
            regs.r8 = r8
        if hypervisor is not None:
            hypervisor.leave(vcpu)
        return Outcome.SERVED

    def _run(self, call: Call) -> tuple[int, Outputs]:
        """The one place where an error becomes a result (S8)."""
        try:
            handler = self._calls.get(call.number)
            if handler is None:
                self._refuse(call)
            return SvsmResult.SUCCESS, handler(call)
        except Refused as refused:
            return refused.result, refused.outputs
        except CallError as error:
            return error.result, NO_OUTPUTS
        except GuestMustStop:
            raise
        except Exception as error:
            incident(f"call {call.number:#x}", error)
            return SvsmResult.INVALID_REQUEST, NO_OUTPUTS

    def _refuse(self, call: Call) -> NoReturn:
        protocol, number = call.number >> 32, call.number & 0xFFFFFFFF
        if protocol not in self._protocols:  # vTPM and APIC are not built: absent is unknown (S5)
            raise UnsupportedProtocol(f"protocol {protocol:#x}")
        if protocol == ATTESTATION:
            raise Refused(call.profile.c3_unknown_attestation_call)
        raise UnsupportedCall(f"protocol {protocol}, call {number:#x}")


#: versions that QUERY_PROTOCOL reports
VERSIONS: Final = {CORE: (1, 1), ATTESTATION: (1, 1), UEFI_MM: (1, 1)}
