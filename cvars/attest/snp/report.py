"""The SEV-SNP attestation report, 1184 bytes in all versions. Source: AMD 56860; `attestation` 2.1.

Little-endian. Offsets are in bytes. The signature (ECDSA P-384, SHA-384) covers 0x000..0x29F.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct as PackedStruct
from typing import Any, Final

from construct import Bytes, Int8ul, Int32ul, Int64ul, Struct

from cvars.attest.snp.products import Line, Tcb, line_of_cpuid

REPORT_BYTES: Final = 1184
SIGNED_BYTES: Final = 0x2A0
KNOWN_VERSIONS: Final = frozenset({2, 3, 4, 5})
VCEK: Final = 0
VLEK: Final = 1
KEY_KINDS: Final = {VCEK: "vcek", VLEK: "vlek", 7: "none"}
HOST_VMPL: Final = 0xFFFFFFFF

ATTESTATION_REPORT: Final = Struct(
    "version" / Int32ul,  # 0x000
    "guest_svn" / Int32ul,  # 0x004
    "policy" / Int64ul,  # 0x008
    "family_id" / Bytes(16),  # 0x010
    "image_id" / Bytes(16),  # 0x020
    "vmpl" / Int32ul,  # 0x030
    "signature_algo" / Int32ul,  # 0x034
    "current_tcb" / Bytes(8),  # 0x038
    "platform_info" / Int64ul,  # 0x040
    "flags" / Int32ul,  # 0x048: 0 AUTHOR_KEY_EN, 1 MASK_CHIP_KEY, 4:2 SIGNING_KEY
    "reserved_4c" / Bytes(4),  # 0x04C
    "report_data" / Bytes(64),  # 0x050
    "measurement" / Bytes(48),  # 0x090
    "host_data" / Bytes(32),  # 0x0C0
    "id_key_digest" / Bytes(48),  # 0x0E0
    "author_key_digest" / Bytes(48),  # 0x110
    "report_id" / Bytes(32),  # 0x140
    "report_id_ma" / Bytes(32),  # 0x160
    "reported_tcb" / Bytes(8),  # 0x180
    "cpuid_family" / Int8ul,  # 0x188, version >= 3
    "cpuid_model" / Int8ul,  # 0x189
    "cpuid_stepping" / Int8ul,  # 0x18A
    "reserved_18b" / Bytes(21),  # 0x18B
    "chip_id" / Bytes(64),  # 0x1A0
    "committed_tcb" / Bytes(8),  # 0x1E0
    "current_version" / Bytes(4),  # 0x1E8: build, minor, major, reserved
    "committed_version" / Bytes(4),  # 0x1EC
    "launch_tcb" / Bytes(8),  # 0x1F0
    "launch_mit_vector" / Int64ul,  # 0x1F8, version >= 5
    "current_mit_vector" / Int64ul,  # 0x200, version >= 5
    "reserved_208" / Bytes(152),  # 0x208
    "signature_r" / Bytes(72),  # 0x2A0, little-endian
    "signature_s" / Bytes(72),  # 0x2E8, little-endian
    "reserved_330" / Bytes(368),  # 0x330, not covered by the signature
)
#: the same layout for speed (D7); a test holds the two together
_PACKED: Final = PackedStruct(
    "<II Q 16s16s II 8s Q I 4s 64s48s32s48s48s32s32s 8s BBB 21s 64s 8s 4s4s 8s QQ 152s 72s72s 368s"
)

POLICY_BITS: Final = {
    "smt": 16,
    "migrate_ma": 18,
    "debug": 19,
    "single_socket": 20,
    "cxl": 21,
    "aes256xts": 22,
    "rapl_disabled": 23,
    "ciphertext_hiding": 24,
    "page_swap_disabled": 25,
}
PLATFORM_BITS: Final = {
    "smt": 0,
    "tsme": 1,
    "ecc": 2,
    "rapl_disabled": 3,
    "ciphertext_hiding": 4,
    "alias_check": 5,
    "tio": 7,
}


@dataclass(frozen=True, slots=True)
class SnpReport:
    """A parsed report. ``raw`` is what the signature covers; TCB versions stay bytes until the line is known."""

    raw: bytes
    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algo: int
    current_tcb: bytes
    platform_info: int
    flags: int
    reserved_4c: bytes
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid_family: int
    cpuid_model: int
    cpuid_stepping: int
    reserved_18b: bytes
    chip_id: bytes
    committed_tcb: bytes
    current_version: bytes
    committed_version: bytes
    launch_tcb: bytes
    launch_mit_vector: int
    current_mit_vector: int
    reserved_208: bytes
    signature_r: bytes
    signature_s: bytes
    reserved_330: bytes

    @staticmethod
    def parse(raw: bytes) -> "SnpReport":
        """Split exactly 1184 bytes into fields.

        Raises:
            ValueError: another size.
        """
        if len(raw) != REPORT_BYTES:
            raise ValueError(f"{len(raw)} bytes, a report has {REPORT_BYTES}")
        return SnpReport(raw, *_PACKED.unpack(raw))

    def to_bytes(self) -> bytes:
        """The 1184 bytes again, from the fields."""
        return build_report(**{field.name: getattr(self, field.name) for field in ATTESTATION_REPORT.subcons})

    @property
    def signing_key(self) -> int:
        """0 VCEK, 1 VLEK, 7 none."""
        return self.flags >> 2 & 7

    @property
    def mask_chip_key(self) -> bool:
        """The firmware was told not to sign with a chip key."""
        return bool(self.flags & 2)

    @property
    def author_key_en(self) -> bool:
        """An author key was used at launch."""
        return bool(self.flags & 1)

    @property
    def masked(self) -> bool:
        """The chip id is not there."""
        return not any(self.chip_id)

    @property
    def line(self) -> Line | None:
        """The product line by CPUID; None in version 2 and for lines without a pinned root."""
        return line_of_cpuid(self.cpuid_family, self.cpuid_model) if self.version >= 3 else None

    def policy_bit(self, name: str) -> bool:
        """One bit of the guest policy."""
        return bool(self.policy >> POLICY_BITS[name] & 1)

    def platform_bit(self, name: str) -> bool:
        """One bit of platform_info."""
        return bool(self.platform_info >> PLATFORM_BITS[name] & 1)

    @property
    def abi(self) -> tuple[int, int]:
        """Lowest firmware ABI that the guest policy accepts: major, minor."""
        return self.policy >> 8 & 0xFF, self.policy & 0xFF

    def tcbs(self, line: Line) -> dict[str, Tcb]:
        """The four TCB versions in ``line``'s layout."""
        return {
            "reported": Tcb.parse(self.reported_tcb, line),
            "committed": Tcb.parse(self.committed_tcb, line),
            "current": Tcb.parse(self.current_tcb, line),
            "launch": Tcb.parse(self.launch_tcb, line),
        }


_BLANK: Final[Mapping[str, Any]] = dict(
    zip((field.name for field in ATTESTATION_REPORT.subcons), _PACKED.unpack(bytes(REPORT_BYTES)), strict=True)
)


def build_report(**fields: Any) -> bytes:  # noqa: ANN401 - the fields of the layout
    """1184 bytes from fields; what is not given is zero.

    Raises:
        ValueError: no such field, or bytes of another length. ``struct.error``: an integer out of range.
    """
    for name, value in fields.items():
        if name not in _BLANK or (isinstance(value, bytes) and len(value) != len(_BLANK[name])):
            raise ValueError(f"not a report's {name}")
    return _PACKED.pack(*{**_BLANK, **fields}.values())
