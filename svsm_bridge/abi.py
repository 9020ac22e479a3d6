"""What caller and SVSM agree on in registers and at fixed addresses.

Source: AMD 58019 "Calling convention", AMD 56421 (GHCB), APM volume 2 appendix B (VMSA); svsm-calls 1, 3.
Numbers are little-endian; addresses and sizes are in bytes.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final
from uuid import UUID

from construct import Bytes, Int8ul, Int32ul, Int64ul, Padding, Struct

PAGE: Final = 0x1000
LARGE: Final = 0x200000
U64: Final = (1 << 64) - 1

#: GHCB exit codes and MSR protocol numbers (S9, S12)
VMGEXIT: Final = 0x403
GHCB_RUN_VMPL_RESPONSE: Final = 0x17

CORE: Final = 0
ATTESTATION: Final = 1
VTPM: Final = 2
APIC: Final = 3
UEFI_MM: Final = 4

#: calling area (1.3)
CA_PENDING: Final = 0
CA_RESERVED: Final = 8  # bytes 0..7 belong to the SVSM; a caller's buffer never overlaps them (S20)

#: VMSA fields (3.1)
VMSA_VMPL: Final = 0x0CA
VMSA_EFER: Final = 0x0D0
VMSA_SEV_FEATURES: Final = 0x3B0
EFER_SVME: Final = 1 << 12

#: where KVM keeps the launch VMSA; outside every memory range that a guest can have
LAUNCH_VMSA: Final = 0xFFFF_FFFF_F000
#: the SVSM's own memory, where COCONUT-SVSM has it
SVSM_BASE: Final = 0x80_0000_0000
SVSM_SIZE: Final = 0x100_0000

VTPM_GUID: Final = UUID("c476f1eb-0123-45a5-9641-b4e7dde5bfe3")
UEFI_MM_GUID: Final = UUID("a4453a59-9e1b-4787-a033-1986d6adbe55")
EXTENSION_GUID: Final = UUID("a49afcf5-a458-4e9b-a656-81c6b2590930")
SERVICES_TABLE_GUID: Final = UUID("63849ebb-3d92-4670-a1ff-58f9c94b87bb")

#: EFI_MM_COMMUNICATE_HEADER: 16 bytes GUID, u64 MessageLength
MM_HEADER: Final = struct.Struct("<16sQ")
MM_HEADER_BYTES: Final = 24

REGISTER_NAMES: Final = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8",
    "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip


@dataclass(slots=True)
class Registers:
    """The register file of a vCPU, in the order of the cross-process transport (section 6)."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rbp: int = 0
    rsp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2

    def values(self) -> tuple[int, ...]:
        """All 18, in wire order."""
        return (
            self.rax, self.rbx, self.rcx, self.rdx, self.rsi, self.rdi, self.rbp, self.rsp, self.r8,
            self.r9, self.r10, self.r11, self.r12, self.r13, self.r14, self.r15, self.rip, self.rflags,
        )  # fmt: skip

    def copy(self) -> "Registers":
        """An independent register file with the same values."""
        return Registers(*self.values())


def call_number(protocol: int, call: int) -> int:
    """RAX of a call (S1)."""
    return protocol << 32 | call


class Outcome(IntEnum):
    """What entering the SVSM came to (CALL reply, section 6)."""

    SERVED = 0
    NOTHING_PENDING = 1
    NO_CALLING_AREA = 2
    NOT_ENTERED = 3


#: outputs of a call: RCX, RDX, R8; None leaves the input value in place (S2)
Outputs = tuple[int | None, int | None, int | None]

SECRETS_SVSM: Final = Struct(  # the SVSM's part of the guest's secrets page, at +0x140
    "svsm_base" / Int64ul,  # +0x140
    "svsm_size" / Int64ul,  # +0x148, non-zero = an SVSM is there
    "svsm_caa" / Int64ul,  # +0x150, calling area of the boot vCPU
    "svsm_max_version" / Int32ul,  # +0x158
    "svsm_guest_vmpl" / Int8ul,  # +0x15c
    Padding(3),
)
SECRETS_PAGE: Final = Struct(
    "version" / Int32ul,  # +0x000
    "gctx" / Int32ul,
    "reserved" / Bytes(0x18),
    "vmpck" / Bytes(32)[4],  # +0x020
    "rest" / Bytes(0xA0),  # +0x0a0
    "svsm" / SECRETS_SVSM,  # +0x140
    "tail" / Bytes(PAGE - 0x160),
)


def secrets_page(*, svsm_base: int, svsm_size: int, caa: int, guest_vmpl: int, vmpcks: bytes) -> bytes:
    """The guest's copy of the secrets page (1.4): the keys of more privileged levels are zeroed.

    ``vmpcks`` are the 32-byte keys of VMPL0..3, 128 bytes.
    """
    return bytes(
        SECRETS_PAGE.build(
            {
                "version": 3,
                "gctx": 0,
                "reserved": bytes(0x18),
                "vmpck": [
                    bytes(32) if level < guest_vmpl else vmpcks[32 * level : 32 * level + 32] for level in range(4)
                ],
                "rest": bytes(0xA0),
                "svsm": {
                    "svsm_base": svsm_base,
                    "svsm_size": svsm_size,
                    "svsm_caa": caa,
                    "svsm_max_version": 1,
                    "svsm_guest_vmpl": guest_vmpl,
                },
                "tail": bytes(PAGE - 0x160),
            }
        )
    )


@lru_cache(maxsize=64)
def guid(raw: bytes) -> UUID:
    """The GUID of 16 bytes in EFI byte order; the few that callers use are remembered."""
    return UUID(bytes_le=raw)
