"""The initial state of a vCPU (VMSA) as each VMM sets it up. Source: AMD APM volume 2, table B-4.

Only the fields that are not zero at launch are declared. Little-endian; offsets in the 4 KiB page.
"""

from enum import StrEnum
from struct import pack_into
from typing import Final

RESET_EIP: Final = 0xFFFFFFF0
PAGE: Final = 4096

#: name -> (offset, format)
_FIELDS: Final = {
    "efer": (0x0D0, "<Q"),
    "cr4": (0x148, "<Q"),
    "cr3": (0x150, "<Q"),
    "cr0": (0x158, "<Q"),
    "dr7": (0x160, "<Q"),
    "dr6": (0x168, "<Q"),
    "rflags": (0x170, "<Q"),
    "rip": (0x178, "<Q"),
    "rsp": (0x1D8, "<Q"),
    "rax": (0x1F8, "<Q"),
    "g_pat": (0x268, "<Q"),
    "rcx": (0x308, "<Q"),
    "rdx": (0x310, "<Q"),
    "rbx": (0x318, "<Q"),
    "rbp": (0x328, "<Q"),
    "rsi": (0x330, "<Q"),
    "rdi": (0x338, "<Q"),
    **{f"r{n}": (0x340 + 8 * (n - 8), "<Q") for n in range(8, 16)},
    "sev_features": (0x3B0, "<Q"),
    "virtual_tom": (0x3C8, "<Q"),
    "xcr0": (0x3E8, "<Q"),
    "mxcsr": (0x408, "<I"),
    "x87_fcw": (0x410, "<H"),
}
#: segment -> offset; selector u16, attributes u16, limit u32, base u64
_SEGMENTS: Final = {
    name: 16 * at for at, name in enumerate(("es", "cs", "ss", "ds", "fs", "gs", "gdtr", "ldtr", "idtr", "tr"))
}
_PAT: Final = 0x0007040600070406
_GCE_PAT: Final = 0x00070106


class Vmm(StrEnum):
    """Whose register state."""

    QEMU = "qemu"
    EC2 = "ec2"
    GCE = "gce"


def cpu_signature(family: int, model: int, stepping: int) -> int:
    """CPUID Fn0000_0001_EAX for a processor (AMD 25481)."""
    low, high = (0xF, (family - 0xF) & 0xFF) if family > 0xF else (family, 0)
    return high << 20 | (model >> 4 & 0xF) << 16 | low << 8 | (model & 0xF) << 4 | stepping & 0xF


_MODELS: Final = {
    "EPYC": (23, 1, 2, 4),
    "EPYC-IBPB": (23, 1, 2, 0),
    "EPYC-Rome": (23, 49, 0, 3),
    "EPYC-Milan": (25, 1, 1, 2),
    "EPYC-Genoa": (25, 17, 0, 1),
    "EPYC-Turin": (26, 0, 0, 0),
}
#: QEMU's vCPU model names and their signatures; ``-vN`` as QEMU numbers them
VCPU_TYPES: Final[dict[str, int]] = {
    name + suffix: cpu_signature(family, model, stepping)
    for name, (family, model, stepping, versions) in _MODELS.items()
    for suffix in ("", *(f"-v{n}" for n in range(1, versions + 1)))
}


def build_page(fields: dict[str, int], segments: dict[str, tuple[int, int, int, int]]) -> bytes:
    """A VMSA page: named fields, and segments as (selector, attributes, limit, base)."""
    page = bytearray(PAGE)
    for name, value in fields.items():
        at, layout = _FIELDS[name]
        pack_into(layout, page, at, value)
    for name, (selector, attributes, limit, base) in segments.items():
        pack_into("<HHIQ", page, _SEGMENTS[name], selector, attributes, limit, base)
    return bytes(page)


def firmware_vcpu(eip: int, *, features: int, signature: int, vmm: Vmm = Vmm.QEMU) -> bytes:
    """A vCPU that starts in flash-style firmware, in 16-bit mode at ``eip``."""
    qemu, ec2 = vmm is Vmm.QEMU, vmm is Vmm.EC2
    data = (0, 0x93, 0xFFFF, 0)
    table = (0, 0, 0xFFFF, 0)
    segments = dict.fromkeys(("es", "ds", "fs", "gs"), data) | {
        "cs": (0xF000, 0x9A if ec2 and eip == RESET_EIP else 0x9B, 0xFFFF, eip & 0xFFFF0000),
        "ss": (0, 0x92 if ec2 else 0x93, 0xFFFF, 0),
        "gdtr": table,
        "idtr": table,
        "ldtr": (0, 0x82, 0xFFFF, 0),
        "tr": (0, 0x83 if ec2 else 0x8B, 0xFFFF, 0),
    }
    fields = {
        "efer": 0x1000,  # EFER.SVME, which KVM turns on
        "cr4": 0x40,  # CR4.MCE, likewise
        "cr0": 0x10,
        "dr7": 0x400,
        "dr6": 0xFFFF0FF0,
        "rflags": 2,
        "rip": eip & 0xFFFF,
        "g_pat": _GCE_PAT if vmm is Vmm.GCE else _PAT,
        "rdx": signature if qemu else 0x600,
        "sev_features": features,
        "xcr0": 1,
        "mxcsr": 0x1F80 if qemu else 0,
        "x87_fcw": 0x37F if qemu else 0,
    }
    return build_page(fields, segments)


def svsm_vcpu(eip: int, *, signature: int) -> bytes:
    """A vCPU that starts in an SVSM image, in flat 32-bit mode at ``eip``, at VMPL 0 (QEMU's SVSM mode).

    The x87 control word stays zero, as in the reference tool's values for this mode.
    """
    flat = (16, 0xC93, 0xFFFFFFFF, 0)
    table = (0, 0, 0xFFFF, 0)
    segments = dict.fromkeys(("es", "ss", "ds", "fs"), flat) | {
        "cs": (8, 0xC9B, 0xFFFFFFFF, 0),
        "gs": (0, 0x93, 0xFFFF, 0),
        "gdtr": table,
        "idtr": table,
        "ldtr": (0, 0x82, 0xFFFF, 0),
        "tr": (0, 0x8B, 0xFFFF, 0),
    }
    fields = {
        "efer": 0x1000,
        "cr4": 0x40,
        "cr0": 0x11,
        "dr7": 0x400,
        "dr6": 0xFFFF0FF0,
        "rflags": 2,
        "rip": eip,
        "g_pat": _PAT,
        "rdx": signature,
        "sev_features": 1,
        "xcr0": 1,
        "mxcsr": 0x1F80,
    }
    return build_page(fields, segments)
