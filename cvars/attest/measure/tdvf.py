"""MRTD of a TDVF image, from its TDX metadata. Source: Intel TDVF design guide; `attestation` 2.8.

The descriptor is found through the GUIDed table of the image (edk2) or, in older images, the u32 at -0x20.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from construct import Bytes, Int32ul, Int64ul, Struct

from cvars.attest.measure.mrtd import Mrtd
from cvars.attest.measure.ovmf import MAX_IMAGE, PAGE, TDX_METADATA, ImageError, read_flash

MAX_SECTIONS: Final = 64
MAX_MEMORY: Final = 64 * 1024 * 1024  # bytes of measured or added memory in one section
ATTR_EXTEND: Final = 1
ATTR_PAGE_AUG: Final = 2

TDVF_DESCRIPTOR: Final = Struct(
    "signature" / Bytes(4),  # "TDVF"
    "length" / Int32ul,
    "version" / Int32ul,
    "count" / Int32ul,
)  # 16 bytes
TDVF_SECTION: Final = Struct(
    "data_offset" / Int32ul,
    "raw_data_size" / Int32ul,
    "memory_address" / Int64ul,
    "memory_data_size" / Int64ul,
    "kind" / Int32ul,
    "attributes" / Int32ul,
)  # 32 bytes


class Kind(IntEnum):
    """Section types."""

    BFV = 0
    CFV = 1
    TD_HOB = 2
    TEMP_MEM = 3
    PERM_MEM = 4
    PAYLOAD = 5
    PAYLOAD_PARAM = 6
    TD_INFO = 7
    TD_PARAMS = 8


_MEMORY_ONLY: Final = (Kind.TD_HOB, Kind.TEMP_MEM, Kind.PERM_MEM)


@dataclass(frozen=True, slots=True)
class Section:
    """One area of the TD's memory."""

    data: bytes
    gpa: int
    size: int
    kind: Kind
    attributes: int


def read_sections(image: bytes) -> tuple[Section, ...]:
    """The sections of a TDVF image.

    Raises:
        ImageError: no TDX metadata, or one that does not fit into the image.
    """
    flash = read_flash(image)
    entry = flash.table.get(TDX_METADATA, image[-0x20:-0x1C])
    start = len(image) - int.from_bytes(entry[:4], "little")
    if TDX_METADATA not in flash.table:
        start = int.from_bytes(entry, "little")
    if start < 0 or start + TDVF_DESCRIPTOR.sizeof() > len(image):
        raise ImageError("no TDX metadata in the image")
    head = TDVF_DESCRIPTOR.parse(image[start : start + TDVF_DESCRIPTOR.sizeof()])
    each, at = TDVF_SECTION.sizeof(), start + TDVF_DESCRIPTOR.sizeof()
    if head.signature != b"TDVF" or head.version != 1:
        raise ImageError("not a TDVF descriptor of version 1")
    if head.count > MAX_SECTIONS or at + head.count * each > len(image):
        raise ImageError(f"a TDVF descriptor with {head.count} sections")
    out = []
    for index in range(head.count):
        raw = TDVF_SECTION.parse(image[at + index * each : at + (index + 1) * each])
        out.append(_section(image, raw))
    return tuple(out)


def _section(image: bytes, raw: object) -> Section:
    offset, size = raw.data_offset, raw.raw_data_size  # type: ignore[attr-defined]
    gpa, memory = raw.memory_address, raw.memory_data_size  # type: ignore[attr-defined]
    kind, attributes = raw.kind, raw.attributes  # type: ignore[attr-defined]
    if kind not in {int(one) for one in Kind}:
        raise ImageError(f"a TDVF section of type {kind}")
    if gpa % PAGE or memory % PAGE or memory > MAX_MEMORY or gpa + memory > 1 << 52:
        raise ImageError(f"a TDVF section at {gpa:#x} of {memory:#x} bytes")
    if offset + size > len(image) or size > memory or size > MAX_IMAGE:
        raise ImageError(f"a TDVF section with {size:#x} bytes of data")
    if size and Kind(kind) in _MEMORY_ONLY:
        raise ImageError(f"a TDVF section {Kind(kind).name} with data")
    return Section(image[offset : offset + size], gpa, memory, Kind(kind), attributes)


def measure_tdvf(image: bytes) -> bytes:
    """MRTD: each section's pages in order; contents count only where the section says "extend".

    Pages are extended directly after they were added, as KVM does it.

    Raises:
        ImageError: not a TDVF image.
    """
    mrtd = Mrtd()
    for section in read_sections(image):
        if section.attributes & ATTR_PAGE_AUG:
            continue  # accepted by the TD at run time, not added at build time
        data = section.data.ljust(section.size, b"\0")
        mrtd.region(section.gpa, data, extend=bool(section.attributes & ATTR_EXTEND))
    return mrtd.value
