"""IGVM files: parsed with every offset checked, and measured as SEV-SNP launches them. `attestation` 2.8.

Source: the IGVM format definitions (microsoft/igvm, MIT): fixed header, variable headers (type u32, length u32,
data padded to 8 bytes), file data. Little-endian.
"""

import zlib
from dataclasses import dataclass
from struct import pack_into
from typing import Final

from construct import Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from cvars.attest.measure.digest import PAGE, VMSA_GPA, LaunchDigest, PageType
from cvars.attest.measure.ovmf import ImageError

MAX_FILE: Final = 256 * 1024 * 1024
MAX_HEADERS: Final = 1 << 17
LARGE_PAGE: Final = 2 * 1024 * 1024
MAX_AREA: Final = 4 * 1024 * 1024  # bytes of one parameter area
MAX_INSERTS: Final = 64
MAX_MEASURED: Final = 1 << 18  # 4 KiB pages of one launch

FIXED_HEADER: Final = Struct(
    "magic" / Bytes(4),  # 0x00 "IGVM"
    "format_version" / Int32ul,  # 0x04: 1 or 2
    "variable_header_offset" / Int32ul,  # 0x08
    "variable_header_size" / Int32ul,  # 0x0C
    "total_file_size" / Int32ul,  # 0x10
    "checksum" / Int32ul,  # 0x14: CRC-32 of both header areas, with this field zero
)  # version 2 goes on with architecture u32 and page size u32
_FIXED_SIZES: Final = {1: 24, 2: 32}
VARIABLE_HEADER: Final = Struct("kind" / Int32ul, "length" / Int32ul)

SUPPORTED_PLATFORM: Final = 0x1
PARAMETER_AREA: Final = 0x301
PAGE_DATA: Final = 0x302
PARAMETER_INSERT: Final = 0x303
VP_CONTEXT: Final = 0x304
SNP_ID_BLOCK: Final = 0x30B
PLATFORM_SNP: Final = 2

PLATFORM: Final = Struct(
    "compatibility_mask" / Int32ul,
    "highest_vtl" / Int8ul,
    "platform_type" / Int8ul,  # 0 native, 1 VSM, 2 SEV-SNP, 3 TDX, 4 SEV, 5 SEV-ES
    "platform_version" / Int16ul,
    "shared_gpa_boundary" / Int64ul,
)
AREA: Final = Struct("number_of_bytes" / Int64ul, "index" / Int32ul, "file_offset" / Int32ul)
PAGE_DATA_HEADER: Final = Struct(
    "gpa" / Int64ul,
    "compatibility_mask" / Int32ul,
    "file_offset" / Int32ul,
    "flags" / Int32ul,  # bit 0: 2 MiB page, bit 1: unmeasured, bit 2: shared
    "data_type" / Int16ul,  # 0 normal, 1 secrets, 2 CPUID data, 3 CPUID XF
    "reserved" / Int16ul,
)
INSERT: Final = Struct("gpa" / Int64ul, "compatibility_mask" / Int32ul, "index" / Int32ul)
CONTEXT: Final = Struct(
    "gpa" / Int64ul,
    "compatibility_mask" / Int32ul,
    "file_offset" / Int32ul,
    "vp_index" / Int16ul,
    "reserved" / Int16ul,
)
_LAYOUTS: Final = {
    SUPPORTED_PLATFORM: PLATFORM,
    PARAMETER_AREA: AREA,
    PAGE_DATA: PAGE_DATA_HEADER,
    PARAMETER_INSERT: INSERT,
    VP_CONTEXT: CONTEXT,
}
_TYPES: Final = {1: PageType.SECRETS, 2: PageType.CPUID, 3: PageType.CPUID}
_CR0_AT: Final = 0x158
KVM_CR0: Final = 0x31
FLAG_2MB: Final = 1
FLAG_UNMEASURED: Final = 2
FLAG_SHARED: Final = 4


@dataclass(frozen=True, slots=True)
class Header:
    """One variable header; ``fields`` only for the types that a measurement needs."""

    kind: int
    raw: bytes
    fields: dict[str, int]


@dataclass(frozen=True, slots=True)
class Igvm:
    """A parsed file."""

    data: bytes
    headers: tuple[Header, ...]

    def mask(self, platform: int = PLATFORM_SNP) -> int:
        """The compatibility mask of a platform.

        Raises:
            ImageError: the file is not for it.
        """
        for header in self.headers:
            if header.kind == SUPPORTED_PLATFORM and header.fields["platform_type"] == platform:
                return header.fields["compatibility_mask"]
        raise ImageError(f"the IGVM file does not support platform type {platform}")

    def slice(self, offset: int, size: int) -> bytes:
        """File data; offset 0 means none.

        Raises:
            ImageError: outside of the file.
        """
        if offset == 0:
            return b""
        if offset + size > len(self.data):
            raise ImageError(f"IGVM data at {offset:#x} ends outside of the file")
        return self.data[offset : offset + size]


def parse_igvm(data: bytes) -> Igvm:
    """Split a file into its headers.

    Raises:
        ImageError: sizes, offsets or the checksum do not fit.
    """
    if len(data) > MAX_FILE or len(data) < FIXED_HEADER.sizeof():
        raise ImageError(f"an IGVM file of {len(data)} bytes")
    fixed = FIXED_HEADER.parse(data[: FIXED_HEADER.sizeof()])
    if fixed.magic != b"IGVM" or fixed.format_version not in _FIXED_SIZES:
        raise ImageError("not an IGVM file of version 1 or 2")
    start, end = fixed.variable_header_offset, fixed.variable_header_offset + fixed.variable_header_size
    if fixed.total_file_size != len(data) or not _FIXED_SIZES[fixed.format_version] <= start <= end <= len(data):
        raise ImageError("IGVM sizes do not fit the file")
    zeroed = data[:0x14] + bytes(4) + data[0x18 : _FIXED_SIZES[fixed.format_version]] + data[start:end]
    if zlib.crc32(zeroed) != fixed.checksum:
        raise ImageError("the IGVM checksum is wrong")
    headers: list[Header] = []
    at = start
    while at < end:
        if at + 8 > end or len(headers) == MAX_HEADERS:
            raise ImageError("IGVM headers cut short, or too many")
        head = VARIABLE_HEADER.parse(data[at : at + 8])
        stop = at + 8 + head.length
        if stop > end:
            raise ImageError(f"an IGVM header of {head.length} bytes ends outside")
        raw = data[at + 8 : stop]
        layout = _LAYOUTS.get(head.kind)
        if layout is not None and len(raw) < layout.sizeof():
            raise ImageError(f"an IGVM header of type {head.kind:#x} with {len(raw)} bytes")
        fields = {} if layout is None else dict(layout.parse(raw))
        fields.pop("_io", None)
        headers.append(Header(head.kind, raw, fields))
        at = stop + -stop % 8
    return Igvm(data, tuple(headers))


def measure_igvm(data: bytes, *, kvm: bool = True, native_zero: bool = False) -> bytes:
    """The SEV-SNP launch digest of an IGVM file.

    Args:
        data: the file.
        kvm: as QEMU and KVM launch it: one VMSA, measured last, at the fixed GPA, with CR0 as KVM sets it.
        native_zero: the platform measures empty pages as zero pages; otherwise as normal pages full of zeros.

    Raises:
        ImageError: not an IGVM file for SEV-SNP, or something in it that KVM cannot launch.
    """
    igvm = parse_igvm(data)
    mask = igvm.mask()
    digest = LaunchDigest()
    areas: dict[int, int] = {}
    contexts: list[bytes] = []
    inserts = 0
    pages = [header for header in igvm.headers if header.kind == PAGE_DATA]
    if sum(512 if header.fields["flags"] & FLAG_2MB else 1 for header in pages) > MAX_MEASURED:
        raise ImageError("an IGVM file that fills too many pages")
    for header in igvm.headers:
        fields = header.fields
        if header.kind == PARAMETER_AREA:
            areas[fields["index"]] = fields["number_of_bytes"]
        elif not fields.get("compatibility_mask", 0) & mask:
            continue
        elif header.kind == PAGE_DATA:
            _page(digest, igvm, fields, native_zero=native_zero)
        elif header.kind == PARAMETER_INSERT:
            size = areas.get(fields["index"])
            if size is None or size > MAX_AREA or fields["gpa"] % PAGE:
                raise ImageError("an IGVM parameter area that was not declared, or is too large")
            inserts += 1
            if inserts > MAX_INSERTS:
                raise ImageError("an IGVM file with too many parameter areas")
            digest.pages(PageType.UNMEASURED, fields["gpa"], size)
        elif header.kind == VP_CONTEXT:
            page = igvm.slice(fields["file_offset"], PAGE).ljust(PAGE, b"\0")
            if kvm:
                contexts.append(page)
            else:
                digest.page(PageType.VMSA, fields["gpa"], page)
    if len(contexts) > 1:
        raise ImageError("KVM launches one vCPU context of an IGVM file, this one has more")
    for page in contexts:
        digest.page(PageType.VMSA, VMSA_GPA, _as_kvm(page))
    return digest.value


def _page(digest: LaunchDigest, igvm: Igvm, fields: dict[str, int], *, native_zero: bool) -> None:
    """Measure one page directive; a 2 MiB page counts as 512 pages."""
    size = LARGE_PAGE if fields["flags"] & FLAG_2MB else PAGE
    gpa, kind = fields["gpa"], fields["data_type"]
    if gpa % PAGE or gpa >= 1 << 52:
        raise ImageError(f"an IGVM page at {gpa:#x}")
    if fields["flags"] & FLAG_SHARED:
        return  # not part of the launch
    if kind in _TYPES:
        digest.pages(_TYPES[kind], gpa, size)
    elif kind:
        raise ImageError(f"an IGVM page of data type {kind}")
    elif fields["flags"] & FLAG_UNMEASURED:
        digest.pages(PageType.UNMEASURED, gpa, size)
    else:
        contents = igvm.slice(fields["file_offset"], size)
        if contents or not native_zero:
            digest.normal(gpa, contents or bytes(size))
        else:
            digest.pages(PageType.ZERO, gpa, size)


def _as_kvm(page: bytes) -> bytes:
    """The VMSA with the CR0 that KVM puts there."""
    out = bytearray(page)
    pack_into("<Q", out, _CR0_AT, KVM_CR0)
    return bytes(out)
