"""Bank header and creation header: fixed layouts, authenticated first, interpreted afterwards (T23).

Source: sealed-store section 6 (tables) and 6.1. Little-endian; offsets as in the table.
"""

import hmac
import struct
from dataclasses import dataclass
from typing import Final

from cvars.store.anchor import ZERO_ROOT, AnchorPoint
from cvars.store.geometry import HEADER_BLOCK, HEADER_BYTES, Geometry

BANK_MAGIC: Final = b"CVFSBNK1"
INIT_MAGIC: Final = b"CVFSINIT"
MAJOR: Final = 1
MINOR: Final = 0
MEDIUM_FILE: Final = 0
MEDIUM_NOR: Final = 1
MAC_OFFSET: Final = 448
DIGEST_OFFSET: Final = 224
MAX_AUX: Final = 448
_FIELDS: Final = struct.Struct("<8sHHBBBBQQQQ16s16sIIQQ32s32sQIIQ32s32s32sH158s64s")
_INIT: Final = struct.Struct("<8sHHBBHQ16sH")
_ZERO_REST: Final = bytes(HEADER_BLOCK - HEADER_BYTES)


@dataclass(frozen=True, slots=True)
class BankHeader:
    """The 512-byte header of a bank; ``anchored`` is the last verified anchor point."""

    major: int
    minor: int
    suite: int
    medium: int
    log2_frame: int
    mode: int
    image_size: int
    bank_offset: int
    bank_size: int
    generation: int
    store_id: bytes
    vm_binding: bytes
    key_version: int
    flags: int
    base_sequence: int
    session: int
    bank_salt: bytes
    parent: bytes
    snapshot_bytes: int
    snapshot_records: int
    previous_key_version: int
    anchored: AnchorPoint
    snapshot_digest: bytes
    key_check: bytes
    window: int
    reserved: bytes = bytes(158)

    @classmethod
    def parse(cls, raw: bytes | memoryview) -> "BankHeader":
        """Lay ``raw`` (512 bytes beginning with the magic) out in fields. Nothing is verified here."""
        f = _FIELDS.unpack(raw)
        fields = (*f[1:22], AnchorPoint(f[22], f[23]), *f[24:28])
        return cls(*fields)

    def encode(self) -> bytes:
        """Bytes 0..447."""
        values = [getattr(self, name) for name in _ORDER]
        anchored = (self.anchored.counter, self.anchored.root)
        return _FIELDS.pack(BANK_MAGIC, *values[:21], *anchored, *values[22:], bytes(64))[:MAC_OFFSET]

    def seal(self, header_key: bytes) -> bytes:
        """The 512 bytes, MAC included."""
        body = self.encode()
        return body + hmac.digest(header_key, body, "sha512")

    @property
    def chained_bytes(self) -> bytes:
        """Bytes 0..447 with the snapshot digest zero: what the bank's chain starts from."""
        body = self.encode()
        return body[:DIGEST_OFFSET] + ZERO_ROOT + body[DIGEST_OFFSET + 32 :]

    @property
    def base(self) -> AnchorPoint:
        """The point that the snapshot is."""
        return AnchorPoint(self.base_sequence, self.snapshot_digest)

    @property
    def parent_point(self) -> AnchorPoint | None:
        """The point before the compaction; None at creation and in an image made offline (session 0)."""
        if self.base_sequence == 0 or self.session == 0:
            return None
        return AnchorPoint(self.base_sequence - 1, self.parent)

    @property
    def geometry(self) -> Geometry | None:
        """The geometry that the header claims, if a store can have it."""
        return Geometry.of(self.image_size, 1 << self.log2_frame) if self.log2_frame < 32 else None


_ORDER: Final = tuple(BankHeader.__dataclass_fields__)


def mac_matches(raw: bytes | memoryview, header_key: bytes) -> bool:
    """Compare the MAC of a 512-byte header in constant time."""
    want = hmac.digest(header_key, raw[:MAC_OFFSET], "sha512")
    return hmac.compare_digest(want, bytes(raw[MAC_OFFSET:HEADER_BYTES]))


def header_block(sealed: bytes) -> bytes:
    """The 4 KiB block: the header, then zeros."""
    return sealed + _ZERO_REST


def rest_is_zero(block: bytes | memoryview) -> bool:
    """Whether the header block holds nothing behind the header."""
    return bytes(block[HEADER_BYTES:HEADER_BLOCK]) == _ZERO_REST


@dataclass(frozen=True, slots=True)
class CreationHeader:
    """The plaintext creation header: geometry and an opaque ticket (SS-22), no security choice."""

    geometry: Geometry
    medium: int
    request_id: bytes
    aux: bytes = b""

    def encode(self) -> bytes:
        """The 512 bytes with their CRC-32C."""
        fixed = _INIT.pack(
            INIT_MAGIC,
            MAJOR,
            MINOR,
            self.geometry.log2_frame,
            self.medium,
            0,
            self.geometry.image_size,
            self.request_id,
            len(self.aux),
        )
        body = (fixed + self.aux).ljust(HEADER_BYTES - 4, b"\0")
        return body + crc32c(body).to_bytes(4, "little")

    @classmethod
    def parse(cls, raw: bytes | memoryview) -> "CreationHeader":
        """Parse 512 bytes that begin with the magic. Raises ValueError saying what is wrong."""
        raw = bytes(raw)
        if crc32c(raw[: HEADER_BYTES - 4]).to_bytes(4, "little") != raw[HEADER_BYTES - 4 :]:
            raise ValueError("its checksum does not match")
        _, major, minor, log2_frame, medium, zero, size, request_id, aux_bytes = _INIT.unpack_from(raw)
        if (major, minor) != (MAJOR, MINOR):
            raise ValueError(f"its format is {major}.{minor}, this engine writes {MAJOR}.{MINOR}")
        geometry = Geometry.of(size, 1 << log2_frame) if log2_frame < 32 else None
        if geometry is None or medium not in (MEDIUM_FILE, MEDIUM_NOR) or zero or aux_bytes > MAX_AUX:
            raise ValueError("its geometry is not one of a store")
        end = _INIT.size + aux_bytes
        if any(raw[end : HEADER_BYTES - 4]):
            raise ValueError("it holds bytes behind its ticket")
        return cls(geometry, medium, request_id, raw[_INIT.size : end])


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # noqa: PLW2901 - Castagnoli, reflected
        table.append(value)
    return tuple(table)


_CRC_TABLE: Final = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), as iSCSI and ext4 use it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
