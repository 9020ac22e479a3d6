"""Launch digests of flash-style firmware, with and without an SVSM, as sev-snp-measure has them."""

from dataclasses import dataclass
from typing import Final

from cvars.attest.measure.digest import LaunchDigest, PageType
from cvars.attest.measure.ovmf import (
    HASH_TABLE,
    PAGE,
    RESET_BLOCK,
    SVSM_INFO,
    Flash,
    ImageError,
    Kind,
    kernel_hashes_page,
    read_flash,
)
from cvars.attest.measure.vmsa import RESET_EIP, Vmm, firmware_vcpu, svsm_vcpu

MAX_VCPUS: Final = 4096
DEFAULT_FEATURES: Final = 1  # SNPActive


@dataclass(frozen=True, slots=True)
class Kernel:
    """A directly booted kernel, whose hashes are measured."""

    image: bytes
    initrd: bytes = b""
    cmdline: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a measurement depends on beside the image (2.8): store it with every allowed measurement."""

    vcpus: int = 1
    signature: int = 0
    vmm: Vmm = Vmm.QEMU
    features: int = DEFAULT_FEATURES

    def __post_init__(self) -> None:
        if not 1 <= self.vcpus <= MAX_VCPUS:
            raise ImageError(f"{self.vcpus} vCPUs")


def measure_firmware(
    image: bytes, machine: Machine, *, kernel: Kernel | None = None, image_digest: bytes | None = None
) -> bytes:
    """The launch digest of flash-style firmware; ``image_digest`` replaces the hashing of its pages.

    Raises:
        ImageError: the image does not carry what the launch needs.
    """
    flash = read_flash(image)
    digest = LaunchDigest(image_digest) if image_digest else LaunchDigest()
    if image_digest is None:
        digest.normal(flash.gpa, flash.data)
    _sections(digest, flash, machine.vmm, kernel)
    others = flash.number(RESET_BLOCK, "reset block for application processors") if machine.vcpus > 1 else 0
    first = firmware_vcpu(RESET_EIP, features=machine.features, signature=machine.signature, vmm=machine.vmm)
    digest.vmsa(first)
    if machine.vcpus > 1:
        page = firmware_vcpu(others, features=machine.features, signature=machine.signature, vmm=machine.vmm)
        for _ in range(machine.vcpus - 1):
            digest.vmsa(page)
    return digest.value


def measure_svsm(firmware: bytes, svsm: bytes, machine: Machine, *, variables_bytes: int = 0) -> bytes:
    """The launch digest of firmware with an SVSM image below it and below its ``variables_bytes`` of variables.

    Raises:
        ImageError: an image does not carry what the launch needs, or another VMM than QEMU.
    """
    if machine.vmm is not Vmm.QEMU:
        raise ImageError("SVSM mode is QEMU's")
    flash = read_flash(firmware)
    trusted = read_flash(svsm, end=flash.gpa - variables_bytes)
    digest = LaunchDigest()
    digest.normal(flash.gpa, flash.data)
    digest.normal(trusted.gpa, trusted.data)
    _sections(digest, trusted, Vmm.QEMU, None)
    eip = trusted.gpa + trusted.number(SVSM_INFO, "SVSM entry point")
    page = svsm_vcpu(eip, signature=machine.signature)
    for _ in range(machine.vcpus):
        digest.vmsa(page)
    return digest.value


def _sections(digest: LaunchDigest, flash: Flash, vmm: Vmm, kernel: Kernel | None) -> None:
    """The metadata's sections in order; EC2 puts the CPUID page last."""
    late = []
    for section in flash.sections:
        match section.kind:
            case Kind.SEC_MEM:
                kind = PageType.UNMEASURED if vmm is Vmm.GCE else PageType.ZERO
                digest.pages(kind, section.gpa, section.size)
            case Kind.SVSM_CAA:
                digest.pages(PageType.ZERO, section.gpa, section.size)
            case Kind.SECRETS:
                digest.page(PageType.SECRETS, section.gpa)
            case Kind.CPUID if vmm is Vmm.EC2:
                late.append(section.gpa)
            case Kind.CPUID:
                digest.page(PageType.CPUID, section.gpa)
            case Kind.KERNEL_HASHES if kernel is not None:
                if section.size != PAGE:
                    raise ImageError(f"a kernel hashes section of {section.size} bytes")
                offset = flash.number(HASH_TABLE, "kernel hashes table") % PAGE
                page = kernel_hashes_page(offset, kernel.image, kernel.initrd, kernel.cmdline)
                digest.normal(section.gpa, page)
            case Kind.KERNEL_HASHES:
                digest.pages(PageType.ZERO, section.gpa, section.size)
    for gpa in late:
        digest.page(PageType.CPUID, gpa)
    if kernel is not None and not any(section.kind is Kind.KERNEL_HASHES for section in flash.sections):
        raise ImageError("a kernel was given, and the firmware has no place for its hashes")
