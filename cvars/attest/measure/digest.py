"""The SEV-SNP launch digest, page by page. Source: AMD 56860 "Launch update"; `attestation` 2.8."""

import hashlib
from enum import IntEnum
from struct import Struct as PackedStruct
from typing import Final

PAGE: Final = 4096
ZERO: Final = bytes(48)
VMSA_GPA: Final = 0xFFFFFFFFF000

#: PAGE_INFO, 0x70 bytes: digest so far, contents, length u16, page type, IMI, 3 VMPL permissions, reserved, GPA
_PAGE_INFO: Final = PackedStruct("<48s48sHBBBBBBQ")
assert _PAGE_INFO.size == 0x70


class PageType(IntEnum):
    """How a page is put into the guest."""

    NORMAL = 1
    VMSA = 2
    ZERO = 3
    UNMEASURED = 4
    SECRETS = 5
    CPUID = 6


class LaunchDigest:
    """``LD``: 48 zero bytes, then SHA-384 of PAGE_INFO for each page."""

    def __init__(self, start: bytes = ZERO) -> None:
        self.value = start

    def page(self, kind: PageType, gpa: int, contents: bytes | None = None) -> None:
        """Add one page; ``contents`` (4096 bytes) counts for normal and VMSA pages only."""
        digest = ZERO
        if kind in (PageType.NORMAL, PageType.VMSA):
            assert contents is not None
            assert len(contents) == PAGE
            digest = hashlib.sha384(contents).digest()
        info = _PAGE_INFO.pack(self.value, digest, 0x70, kind, 0, 0, 0, 0, 0, gpa)
        self.value = hashlib.sha384(info).digest()

    def normal(self, gpa: int, data: bytes) -> None:
        """Add ``data`` (whole pages) from ``gpa`` on."""
        for at in range(0, len(data), PAGE):
            self.page(PageType.NORMAL, gpa + at, data[at : at + PAGE])

    def pages(self, kind: PageType, gpa: int, size: int) -> None:
        """Add ``size`` bytes of pages without contents."""
        for at in range(0, size, PAGE):
            self.page(kind, gpa + at)

    def vmsa(self, page: bytes) -> None:
        """Add one vCPU's save area, which the hypervisor measures at a fixed address."""
        self.page(PageType.VMSA, VMSA_GPA, page)


def flash_digest(image: bytes) -> LaunchDigest:
    """The digest after a firmware image whose last byte lies below 4 GiB (all pages normal)."""
    if not image or len(image) % PAGE:
        raise ValueError(f"an image of {len(image)} bytes is not whole pages")
    digest = LaunchDigest()
    digest.normal((1 << 32) - len(image), image)
    return digest
