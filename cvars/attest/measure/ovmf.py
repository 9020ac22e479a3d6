"""What flash-style firmware says about its own launch: the GUIDed table at its end and the SEV metadata.

Source: edk2 OvmfPkg/ResetVector (table, metadata); `attestation` 2.8. Little-endian, packed. Nothing in an image
is trusted: every offset and size is checked.
"""

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Final
from uuid import UUID

from construct import Bytes, Int16ul, Int32ul, Struct

FOUR_GIB: Final = 1 << 32
PAGE: Final = 4096
MAX_IMAGE: Final = 64 * 1024 * 1024
MAX_SECTIONS: Final = 64

FOOTER: Final = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
HASH_TABLE: Final = UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
RESET_BLOCK: Final = UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
SEV_METADATA: Final = UUID("dc886566-984a-4798-a75e-5585a7bf67cc")
TDX_METADATA: Final = UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
SVSM_INFO: Final = UUID("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd")

TABLE_ENTRY: Final = Struct("size" / Int16ul, "guid" / Bytes(16))  # 18 bytes, behind the entry's data
METADATA_HEADER: Final = Struct(
    "signature" / Bytes(4),  # "ASEV"
    "size" / Int32ul,
    "version" / Int32ul,
    "count" / Int32ul,
)  # 16 bytes
METADATA_SECTION: Final = Struct("gpa" / Int32ul, "size" / Int32ul, "kind" / Int32ul)  # 12 bytes


class ImageError(ValueError):
    """The image is not what it has to be."""


class Kind(IntEnum):
    """Section types of the SEV metadata."""

    SEC_MEM = 1
    SECRETS = 2
    CPUID = 3
    SVSM_CAA = 4
    KERNEL_HASHES = 0x10


@dataclass(frozen=True, slots=True)
class Section:
    """One area that the hypervisor prepares."""

    gpa: int
    size: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Flash:
    """A firmware image that ends at ``end`` in guest memory, with its table and sections."""

    data: bytes
    end: int
    table: dict[UUID, bytes]
    sections: tuple[Section, ...]

    @property
    def gpa(self) -> int:
        """Where its first byte lies."""
        return self.end - len(self.data)

    def number(self, guid: UUID, what: str) -> int:
        """The u32 of a table entry.

        Raises:
            ImageError: no such entry.
        """
        entry = self.table.get(guid, b"")
        if len(entry) < 4:
            raise ImageError(f"the image's table has no {what}")
        return int.from_bytes(entry[:4], "little")


def read_flash(data: bytes, *, end: int = FOUR_GIB) -> Flash:
    """Read table and metadata of an image; an image without a table has neither.

    Raises:
        ImageError: not whole pages, too large, or a table or metadata that do not fit into it.
    """
    if not data or len(data) > MAX_IMAGE or len(data) % PAGE or len(data) > end:
        raise ImageError(f"an image of {len(data)} bytes")
    table = _table(data)
    return Flash(data, end, table, _sections(data, table.get(SEV_METADATA)))


def _table(data: bytes) -> dict[UUID, bytes]:
    """Entries from the end of the image backwards; the footer ends 32 bytes before it."""
    entry_bytes = TABLE_ENTRY.sizeof()
    at = len(data) - 32 - entry_bytes
    footer = TABLE_ENTRY.parse(data[at : at + entry_bytes])
    if footer.guid != FOOTER.bytes_le:
        return {}
    left = footer.size - entry_bytes
    if left < 0 or left > at:
        raise ImageError(f"a firmware table of {footer.size} bytes")
    out: dict[UUID, bytes] = {}
    end = at
    while left >= entry_bytes:
        entry = TABLE_ENTRY.parse(data[end - entry_bytes : end])
        if not entry_bytes <= entry.size <= left:
            raise ImageError(f"a firmware table entry of {entry.size} bytes")
        out[UUID(bytes_le=entry.guid)] = data[end - entry.size : end - entry_bytes]
        end -= entry.size
        left -= entry.size
    return out


def _sections(data: bytes, entry: bytes | None) -> tuple[Section, ...]:
    if entry is None:
        return ()
    start = len(data) - int.from_bytes(entry[:4], "little")
    if len(entry) < 4 or start < 0 or start + METADATA_HEADER.sizeof() > len(data):
        raise ImageError("SEV metadata outside of the image")
    header = METADATA_HEADER.parse(data[start : start + METADATA_HEADER.sizeof()])
    if header.signature != b"ASEV" or header.version != 1:
        raise ImageError("not SEV metadata of version 1")
    at, each = start + METADATA_HEADER.sizeof(), METADATA_SECTION.sizeof()
    if header.count > MAX_SECTIONS or at + header.count * each > len(data):
        raise ImageError(f"SEV metadata with {header.count} sections")
    out = []
    for index in range(header.count):
        section = METADATA_SECTION.parse(data[at + index * each : at + (index + 1) * each])
        if section.kind not in {int(kind) for kind in Kind} or section.size % PAGE or section.size > MAX_IMAGE:
            raise ImageError(f"SEV metadata section of type {section.kind:#x}, {section.size} bytes")
        out.append(Section(section.gpa, section.size, Kind(section.kind)))
    return tuple(out)


_HASHES_HEADER: Final = UUID("9438d606-4f22-4cc9-b479-a793d411fd21")
_CMDLINE: Final = UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
_INITRD: Final = UUID("44baf731-3a2f-4bd7-9af1-41e29169781d")
_KERNEL: Final = UUID("4de79437-abd2-427f-b835-d5b172d2045b")


def kernel_hashes_page(offset: int, kernel: bytes, initrd: bytes = b"", cmdline: str = "") -> bytes:
    """The page with the hashes of a directly booted kernel, as QEMU lays it out at ``offset`` in it."""
    parts = b""
    for guid, contents in (
        (_CMDLINE, cmdline.encode() + b"\0"),
        (_INITRD, initrd),
        (_KERNEL, kernel),
    ):
        parts += guid.bytes_le + (50).to_bytes(2, "little") + hashlib.sha256(contents).digest()
    table = _HASHES_HEADER.bytes_le + (18 + len(parts)).to_bytes(2, "little") + parts
    table = table.ljust(-(-len(table) // 16) * 16, b"\0")
    if offset + len(table) > PAGE:
        raise ImageError("the kernel hashes do not fit behind their offset")
    return (bytes(offset) + table).ljust(PAGE, b"\0")
