"""The guest's side of the calling convention: what firmware does around VMGEXIT.

For the simulated guest, examples and tests. Source: edk2 `VirtMmCommunicationDxe`, Linux `arch/x86/coco/sev`;
svsm-calls 1.3, 3.5.
"""

import mmap
import struct
from abc import ABC, abstractmethod
from typing import Final, NamedTuple
from uuid import UUID

from svsm_bridge.abi import ATTESTATION, CORE, MM_HEADER_BYTES, PAGE, UEFI_MM, Outcome, Registers, call_number
from svsm_bridge.errors import SvsmResult

#: where the guest's one range of RAM starts, and what lies in it
RAM_BASE: Final = 0x100000
RAM_BYTES: Final = 0x100000
CA_GPA: Final = RAM_BASE
BUFFER_GPA: Final = RAM_BASE + 0x10000
BUFFER_BYTES: Final = 0x10000
#: pages of the attestation helper
_OPERATION: Final = RAM_BASE + 0x2000
_NONCE: Final = RAM_BASE + 0x3000
_REPORT: Final = RAM_BASE + 0x4000
_CERTIFICATES: Final = RAM_BASE + 0x8000
_MANIFEST: Final = RAM_BASE + 0x20000
_NO_SIZE: Final = (1 << 64) - 1
ATTEST_TRIES: Final = 4
AGAIN: Final = (SvsmResult.BUSY, SvsmResult.INCOMPLETE)


class CallFailed(Exception):
    """The call came back with ``result`` other than SUCCESS in RAX: firmware reports DEVICE_ERROR."""

    def __init__(self, result: int) -> None:
        try:
            name = SvsmResult(result).name
        except ValueError:
            name = "protocol-specific"
        super().__init__(f"the SVSM answered {result:#x} ({name})")
        self.result = result


class NotEntered(Exception):
    """The SVSM did not run: the pending flag was still set when the guest took it back (S11)."""


class Attestation(NamedTuple):
    """What an attestation call wrote: report, manifest, certificate table (empty when the host has none)."""

    report: bytes
    manifest: bytes
    certificates: bytes


class GuestSide(ABC):
    """A guest with one range of RAM, one boot vCPU and firmware's 64 KiB message buffer."""

    def __init__(self, ram: mmap.mmap, *, ram_base: int = RAM_BASE) -> None:
        self.ram = ram
        self.ram_base = ram_base
        self.ca = CA_GPA
        self.vcpu = 0

    @abstractmethod
    def enter(self, vcpu: int, regs: Registers) -> Outcome:
        """VMGEXIT: run VMPL0 on ``vcpu``; ``regs`` becomes what the guest finds afterwards."""

    @abstractmethod
    def reset(self) -> None:
        """Platform reset."""

    @abstractmethod
    def close(self) -> None:
        """Power off."""

    def peek(self, gpa: int, size: int) -> bytes:
        """The guest reads its own memory."""
        return self.ram[gpa - self.ram_base : gpa - self.ram_base + size]

    def poke(self, gpa: int, data: bytes) -> None:
        """The guest writes its own memory."""
        self.ram[gpa - self.ram_base : gpa - self.ram_base + len(data)] = data

    def call(self, regs: Registers, *, vcpu: int | None = None, ca: int | None = None) -> int:
        """One call: set the flag, VMGEXIT, take the flag back, repeat while the answer is BUSY. RAX.

        Raises:
            NotEntered: the hypervisor came back without running the SVSM.
        """
        area = (self.ca if ca is None else ca) - self.ram_base
        asked = regs.copy()
        while True:
            self.ram[area] = 1
            self.enter(self.vcpu if vcpu is None else vcpu, regs)
            still, self.ram[area] = self.ram[area], 0  # xchg; one thread per vCPU, so two steps do
            if still:
                raise NotEntered("the pending flag is still set: the SVSM did not run")
            if regs.rax not in AGAIN:
                return regs.rax
            regs.rax, regs.rcx, regs.rdx, regs.r8 = asked.rax, asked.rcx, asked.rdx, asked.r8

    def query_protocol(self, protocol: int, version: int = 1) -> int:
        """QUERY_PROTOCOL: max << 32 | min, or 0."""
        regs = Registers(rax=call_number(CORE, 6), rcx=protocol << 32 | version)
        result = self.call(regs)
        if result:
            raise CallFailed(result)
        return regs.rcx

    def mm_request(self, message: bytes) -> bytes:
        """Send one MM message, 24-byte header included; the same number of bytes comes back.

        Raises:
            CallFailed: RAX was not SUCCESS.
            ValueError: longer than firmware's buffer.
        """
        if not MM_HEADER_BYTES <= len(message) <= BUFFER_BYTES:
            raise ValueError(f"a message of {len(message)} bytes does not fit firmware's buffer")
        self.poke(BUFFER_GPA, message)
        result = self.call(Registers(rax=call_number(UEFI_MM, 1), rcx=BUFFER_GPA, rdx=BUFFER_BYTES))
        if result:
            raise CallFailed(result)
        return self.peek(BUFFER_GPA, len(message))

    def attest(self, nonce: bytes, *, service: tuple[UUID, int] | None = None) -> Attestation:
        """Ask for an attestation over 64 bytes of ``nonce``: of all services, or of one in a manifest version.

        Sizes are asked for first, as callers of the SVSM do.

        Raises:
            CallFailed: RAX was not SUCCESS.
        """
        rooms = (0, 0, PAGE)
        tail = b"" if service is None else service[0].bytes_le + struct.pack("<II", service[1], 0)
        self.poke(_NONCE, nonce)
        for _ in range(ATTEST_TRIES):
            raw = struct.pack(
                "<QIIQH6xQIIQII", _REPORT, rooms[2], 0, _NONCE, len(nonce), _MANIFEST, rooms[0], 0, _CERTIFICATES,
                rooms[1], 0,
            )  # fmt: skip
            self.poke(_OPERATION, raw + tail)
            regs = Registers(rax=call_number(ATTESTATION, int(service is not None)), rcx=_OPERATION)
            regs.rdx = regs.r8 = _NO_SIZE
            result = self.call(regs)
            if result != SvsmResult.INVALID_PARAMETER or _NO_SIZE in (regs.rdx, regs.r8):
                break
            rooms = (regs.rcx, regs.rdx or PAGE, regs.r8)
        if result:
            raise CallFailed(result)
        return Attestation(
            self.peek(_REPORT, regs.r8), self.peek(_MANIFEST, regs.rcx), self.peek(_CERTIFICATES, regs.rdx)
        )
